//! Rule files and directories of them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use attache_service::config::{Document, Errors, Spanned as _};

use super::{descriptor, rules::Rules};

impl Rules {
    /// Reads the rules of one text; `name` stands for it in messages.
    ///
    /// # Errors
    /// All faults of the text, each at its place.
    pub fn parse(name: &str, text: &str) -> Result<Self, Errors> {
        let mut rules = Self::default();
        let mut errors = Errors::new();
        add(Document::parse(name, text), name, &mut rules, &mut errors);
        errors.into_result(Some(rules))
    }

    /// Reads a rule file, or every file of a directory in the order of their names, whatever
    /// their extension, as the reference does. Each has a domain of its own. Names that start
    /// with a dot are passed over (Kubernetes keeps its own files there), and so are directories.
    ///
    /// # Errors
    /// All faults of all files: one bad file refuses them all.
    pub fn load(path: &Path) -> Result<Self, Errors> {
        let mut rules = Self::default();
        let mut errors = Errors::new();
        match files(path) {
            Ok(files) => {
                for file in files {
                    let name = file.display().to_string();
                    add(Document::load(&file), &name, &mut rules, &mut errors);
                }
            }
            Err(error) => errors.push_file(
                path.display().to_string(),
                format!("cannot be read: {error}"),
            ),
        }
        errors.into_result(Some(rules))
    }
}

fn add(document: Result<Document, Errors>, name: &str, rules: &mut Rules, errors: &mut Errors) {
    let faults = match document {
        Ok(document) => {
            descriptor::add_file(document.root(), rules, errors);
            document.errors()
        }
        Err(faults) => faults,
    };
    for fault in &faults {
        let text = format!("error loading config file: {}", fault.message());
        if fault.span().is_known() {
            errors.push(fault.span().span(), text);
        } else {
            errors.push_file(name, text);
        }
    }
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
                "domain: d\ndescriptors: abc".into(),
                "error loading config file: yaml: unmarshal errors:\n  line 2: cannot unmarshal !!str `abc` into []config.YamlDescriptor",
            ),
            (limit("unit: day, replaces: [{ name: m }]"), "`replaces` is known, but not supported yet"),
            (
                "domain: d\ndescriptors:\n- { key: a, shadow_mode: true }".into(),
                "`shadow_mode` is known, but not supported yet",
            ),
            (
                "domain: d\ndescriptors:\n- { key: a, metadata: { any: [1, 2.5] } }".into(),
                "`metadata` is known, but not supported yet",
            ),
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
            "domain: d\ndescriptors:\n- { key: a, value: 200, shadow_mode: false }",
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
    fn a_missing_directory_is_an_error() {
        let errors = Rules::load(Path::new("/nonexistent/limits")).unwrap_err();
        assert!(
            errors
                .to_string()
                .starts_with("/nonexistent/limits: cannot be read"),
            "{errors}"
        );
    }
}
