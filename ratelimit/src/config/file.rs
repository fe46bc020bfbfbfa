//! Rule files and directories of them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use attache_service::config::{Document, Errors, Spanned as _};

use super::{Merge, document, rules::Rules, tree};

impl Rules {
    /// Reads the rules of one text; `name` stands for it in messages.
    ///
    /// # Errors
    /// All faults of the text, each at its place.
    pub fn parse(name: &str, text: &str) -> Result<Self, Errors> {
        let mut rules = Self::default();
        let mut errors = Errors::new();
        let domain = read(Document::parse(name, text), name, &mut errors);
        if let Some(domain) = domain {
            rules.add(domain, Merge::Refuse, &mut errors);
        }
        errors.into_result(Some(rules))
    }

    /// Reads a rule file, or every file of a directory in the order of their names, whatever
    /// their extension, as the reference does. Each has a domain of its own. Names that start
    /// with a dot are passed over (Kubernetes keeps its own files there), and so are directories.
    ///
    /// # Errors
    /// All faults of all files: one bad file refuses them all.
    pub fn load(path: &Path) -> Result<Self, Errors> {
        Self::load_merging(path, Merge::default())
    }

    /// Like [`Rules::load`]; `merge` says what happens when two files have the same domain.
    ///
    /// # Errors
    /// As for [`Rules::load`].
    pub fn load_merging(path: &Path, merge: Merge) -> Result<Self, Errors> {
        Self::load_files([path], merge)
    }

    /// Reads these files, and those of these directories, in this order, as one configuration.
    ///
    /// # Errors
    /// As for [`Rules::load`].
    pub fn load_files(
        paths: impl IntoIterator<Item = impl AsRef<Path>>,
        merge: Merge,
    ) -> Result<Self, Errors> {
        let mut rules = Self::default();
        let mut errors = Errors::new();
        for path in paths {
            let path = path.as_ref();
            let files = files(path).unwrap_or_else(|error| {
                let name = path.display().to_string();
                errors.push_file(name, format!("cannot be read: {error}"));
                Vec::new()
            });
            for file in files {
                let name = file.display().to_string();
                if let Some(domain) = read(Document::load(&file), &name, &mut errors) {
                    rules.add(domain, merge, &mut errors);
                }
            }
        }
        errors.into_result(Some(rules))
    }

    /// Like [`Rules::load_files`], with names for the files in messages.
    ///
    /// # Errors
    /// As for [`Rules::load`].
    pub fn load_named(
        files: impl IntoIterator<Item = (String, PathBuf)>,
        merge: Merge,
    ) -> Result<Self, Errors> {
        let mut rules = Self::default();
        let mut errors = Errors::new();
        for (name, path) in files {
            let text = match fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => {
                    errors.push_file(name, format!("cannot be read: {error}"));
                    continue;
                }
            };
            if let Some(domain) = read(Document::parse(&name, text), &name, &mut errors) {
                rules.add(domain, merge, &mut errors);
            }
        }
        errors.into_result(Some(rules))
    }

    /// Makes rules of trees that came from elsewhere than from files.
    ///
    /// # Errors
    /// All faults of all trees.
    pub fn compile(
        domains: impl IntoIterator<Item = tree::Domain>,
        merge: Merge,
    ) -> Result<Self, Errors> {
        let mut rules = Self::default();
        let mut errors = Errors::new();
        for domain in domains {
            rules.add(domain, merge, &mut errors);
        }
        errors.into_result(Some(rules))
    }
}

fn read(
    document: Result<Document, Errors>,
    name: &str,
    errors: &mut Errors,
) -> Option<tree::Domain> {
    let (domain, faults) = match document {
        Ok(document) => (document::read(document.root(), errors), document.errors()),
        Err(faults) => (None, faults),
    };
    for fault in &faults {
        let text = format!("error loading config file: {}", fault.message());
        if fault.span().is_known() {
            errors.push(fault.span().span(), text);
        } else {
            errors.push_file(name, text);
        }
    }
    domain
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Through symlinks: the files of a mounted ConfigMap are some.
        let path = entry.path();
        if fs::metadata(&path)?.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(errors: &Errors) -> Vec<&str> {
        errors.iter().map(|error| error.message()).collect()
    }

    #[test]
    fn bad_files_are_refused_with_the_texts_of_the_reference() {
        let limit = |fields: &str| {
            format!("domain: d\ndescriptors:\n- key: a\n  rate_limit: {{ {fields} }}\n")
        };
        let table: Vec<(String, &str)> = vec![
            ("ratelimit: 1".into(), "config error, unknown key 'ratelimit'"),
            (limit("unit: day, requestsperunit: 3"), "config error, unknown key 'requestsperunit'"),
            ("domain: d\n0.25: x".into(), "config error, key is not of type string: 0.25"),
            ("domain: d\n\"0.25\": x".into(), "config error, unknown key '0.25'"),
            (
                "domain: d\ndescriptors:\n- a\n- b".into(),
                "config error, yaml file contains list of type other than map: a",
            ),
            (limit("unit: day, requests_per_unit: 1.5"), "error checking config"),
            (limit("unit: day, requests_per_unit: 9223372036854775808"), "error checking config"),
            ("descriptors:\n- key: a".into(), "config file cannot have empty domain"),
            ("".into(), "config file cannot have empty domain"),
            ("domain: ''".into(), "config file cannot have empty domain"),
            ("domain: d\ndescriptors:\n- value: x".into(), "descriptor has empty key"),
            (
                "domain: d\ndescriptors:\n- key: p\n  descriptors:\n  - { key: a, value: b }\n  - { key: a, value: b }".into(),
                "duplicate descriptor composite key 'd.p.a_b'",
            ),
            (
                "domain: d\ndescriptors:\n- { key: a, value: b_c }\n- { key: a_b, value: c }".into(),
                "duplicate descriptor composite key 'd.a_b_c'",
            ),
            (limit("unit: foo, requests_per_unit: 1"), "invalid rate limit unit 'foo'"),
            (limit("unit: unknown"), "invalid rate limit unit 'unknown'"),
            (limit("requests_per_unit: 1"), "invalid rate limit unit ''"),
            (
                limit("unlimited: true, unit: day"),
                "should not specify rate limit unit when unlimited",
            ),
            (
                limit("unit: day, replaces: [{ name: '' }]"),
                "should not have an empty replaces entry",
            ),
            (
                limit("unit: day, name: n, replaces: [{ name: n }]"),
                "replaces should not contain name of same descriptor",
            ),
            (
                "domain: d\ndescriptors:\n- { key: a, value: b, share_threshold: true }".into(),
                "share_threshold can only be used with wildcard values (containing '*'), but found key 'a_b'",
            ),
            (
                limit("unit: day, requests_per_unit: -1"),
                "error loading config file: yaml: unmarshal errors:\n  line 4: cannot unmarshal !!int `-1` into uint32",
            ),
            (
                limit("unit: day, requests_per_unit: 4294967296"),
                "error loading config file: yaml: unmarshal errors:\n  line 4: cannot unmarshal !!int `4294967296` into uint32",
            ),
            (
                limit("unit: day, requests_per_unit: x"),
                "error loading config file: yaml: unmarshal errors:\n  line 4: cannot unmarshal !!str `x` into uint32",
            ),
            (
                limit("unit: day, requests_per_unit: '20'"),
                "error loading config file: yaml: unmarshal errors:\n  line 4: cannot unmarshal !!str `20` into uint32",
            ),
            (
                "domain: d\ndescriptors: abc".into(),
                "error loading config file: yaml: unmarshal errors:\n  line 2: cannot unmarshal !!str `abc` into []config.YamlDescriptor",
            ),
            (
                "domain: d\ndescriptors:\n- { key: a, metadata: text }".into(),
                "error loading config file: yaml: unmarshal errors:\n  line 3: cannot unmarshal !!str `text` into map[string]interface {}",
            ),
            (
                "domain: d\ndescriptors:\n- { key: a, metadata: { a: { 1: text } } }".into(),
                "error parsing metadata: the key 1 is not text",
            ),
            ("domain: d\non: x".into(), "config error, key is not of type string: true"),
            ("domain: d\n~: x".into(), "config error, key is not of type string: <nil>"),
        ];
        for (text, expected) in table {
            let errors = Rules::parse("limits.yaml", &text).unwrap_err();
            assert!(messages(&errors).contains(&expected), "{text}\n{errors}");
        }
        let errors = Rules::parse("limits.yaml", "'''").unwrap_err();
        assert!(
            messages(&errors)[0].starts_with("error loading config file: "),
            "{errors}"
        );
    }

    #[test]
    fn a_key_that_stands_twice_in_a_map_is_refused() {
        let errors = Rules::parse("limits.yaml", "domain: d\ndomain: e\n").unwrap_err();
        assert_eq!(
            messages(&errors),
            ["error loading config file: duplicate key `domain`, already on line 1"]
        );
    }

    #[test]
    fn all_faults_are_told_with_their_places() {
        let text = "domain: d\ndescriptors:\n- value: x\n- key: a\n  rate_limit: { unit: foo }\n";
        let errors = Rules::parse("limits.yaml", text).unwrap_err();
        let places: Vec<_> = errors
            .iter()
            .map(|error| (error.line(), error.message()))
            .collect();
        assert_eq!(
            places,
            [
                (Some(3), "descriptor has empty key"),
                (Some(5), "invalid rate limit unit 'foo'")
            ]
        );
    }

    #[test]
    fn what_the_reference_takes_is_taken() {
        for text in [
            "domain: d",
            "domain: d\ndescriptors:",
            "domain: d\ndescriptors:\n- { key: a, value: 200, shadow_mode: yes, quota_mode: false }",
            "domain: d\ndescriptors:\n- { key: a, value: true }\n- { key: a, value: on }",
            "domain: d\ndescriptors:\n- { key: on, detailed_metric: true, value_to_metric: true }",
            "domain: d\ndescriptors:\n- { key: a, value: b*c, share_threshold: true }",
            "domain: d\ndescriptors:\n- { key: a*, share_threshold: true }",
            "domain: d\ndescriptors:\n- { key: a, rate_limit: { unit: day, replaces: [{ name: m }] } }",
            "domain: d\ndescriptors:\n- { key: a, metadata: { 1: x, any: [1, 2.5, { \"on\": null }] } }",
            "domain: d\nunlimited: true\nname: x\nrate_limit: { domain: y }",
            "domain: d\ndescriptors:\n- { key: a, rate_limit: { unit: MiNuTe } }",
            "domain: d\ndescriptors:\n- { key: a, unit: day }",
            "domain: d\ndescriptors:\n- { key: a, rate_limit: { unlimited: true, unit: nonsense } }",
        ] {
            if let Err(errors) = Rules::parse("limits.yaml", text) {
                panic!("{text}\n{errors}");
            }
        }
    }

    #[test]
    fn a_directory_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("one.yaml", "domain: one");
        write("two", "domain: two");
        write("..data", "no rules");
        fs::create_dir(directory.path().join("sub")).unwrap();
        let rules = Rules::load(directory.path()).unwrap();
        assert!(rules.has_domain("one") && rules.has_domain("two"));
        assert_eq!(rules.domains().count(), 2);

        write("three.yml", "domain: one");
        let errors = Rules::load(directory.path()).unwrap_err();
        assert_eq!(messages(&errors), ["duplicate domain 'one' in config file"]);
        // Files come in the order of their names, so the second is at fault.
        assert!(errors.to_string().contains("three.yml:1:"), "{errors}");
    }

    #[test]
    fn files_of_one_domain_can_be_merged() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, keys: &[&str]| {
            let keys: String = keys.iter().map(|key| format!("- key: {key}\n")).collect();
            let text = format!("domain: d\ndescriptors:\n{keys}");
            fs::write(directory.path().join(name), text).unwrap();
        };
        let load = || Rules::load_merging(directory.path(), Merge::Domains);
        write("1.yaml", &["a"]);
        write("2.yaml", &["b"]);
        assert_eq!(load().unwrap().domains().collect::<Vec<_>>(), ["d"]);

        write("2.yaml", &["b", "a"]);
        let errors = load().unwrap_err();
        assert_eq!(
            messages(&errors),
            ["duplicate descriptor composite key 'd.a'"]
        );
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let errors = Rules::load(Path::new("/nonexistent/limits")).unwrap_err();
        assert!(
            errors
                .to_string()
                .starts_with("/nonexistent/limits: cannot be read"),
            "{errors}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_refuses_the_load() {
        let directory = tempfile::tempdir().unwrap();
        let (good, bad) = (directory.path().join("good"), directory.path().join("bad"));
        fs::write(&good, "domain: d").unwrap();
        fs::write(&bad, [0xff]).unwrap();
        let named = |name: &str, path: &Path| (name.to_owned(), path.to_path_buf());
        let files = [named("config.good", &good), named("config.bad", &bad)];
        let errors = Rules::load_named(files, Merge::Refuse).unwrap_err();
        assert!(
            errors.to_string().starts_with("config.bad: cannot be read"),
            "{errors}"
        );
        let rules = Rules::load_named([named("config.good", &good)], Merge::Refuse);
        assert!(rules.unwrap().has_domain("d"));
    }
}
