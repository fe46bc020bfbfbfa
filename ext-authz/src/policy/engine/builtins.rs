//! What policies may use: the functions, and the ways to write rules, that give the same answers
//! here as in Open Policy Agent. All else is refused when a policy is loaded, by name and place.

use std::collections::BTreeSet;

use regorus::unstable::{Expr, Module, Ref, Rule, RuleHead, Span};

use super::syntax::{Mention, path, walk};

/// Built-in functions, sorted.
const KNOWN: &[&str] = &[
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "base64url.decode",
    "base64url.encode",
    "base64url.encode_no_pad",
    "bits.and",
    "bits.lsh",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "glob.quote_meta",
    "graph.reachable",
    "graph.reachable_paths",
    "hex.decode",
    "hex.encode",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.marshal",
    "json.remove",
    "json.unmarshal",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_is_valid",
    "numbers.range",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "print",
    "product",
    "regex.find_all_string_submatch_n",
    "regex.find_n",
    "regex.match",
    "regex.replace",
    "regex.split",
    "replace",
    "round",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "time.clock",
    "time.date",
    "time.diff",
    "time.now_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "upper",
    "uuid.rfc4122",
    "walk",
];

/// Those whose answer changes though what they are given does not.
const CHANGING: &[&str] = &["time.now_ns", "uuid.rfc4122"];

/// Checks all functions that some modules call. Says whether they include any whose answer
/// changes by itself.
///
/// # Errors
/// The functions that there are not, one a line, each with its place.
pub(super) fn check(modules: &[Ref<Module>]) -> Result<bool, String> {
    let own: BTreeSet<String> = modules
        .iter()
        .flat_map(|module| functions(module))
        .collect();
    let mut changing = false;
    let mut problems = BTreeSet::new();
    for module in modules {
        let scope = Scope::of(module);
        walk(module, &mut |mention| {
            let (name, span) = match mention {
                Mention::Call(name, span) => (name, span),
                Mention::Replaced(path, span) => match path.first() {
                    Some(&("input" | "data")) => return,
                    _ => (path, span),
                },
                Mention::Negated(span) => {
                    let problem = "only numbers have a sign; write `0 - x`";
                    problems.insert(format!("{}: {problem}", place(span)));
                    return;
                }
                Mention::DeepHead(span) => {
                    let problem = "only the last part of a rule's name can be a variable";
                    problems.insert(format!("{}: {problem}", place(span)));
                    return;
                }
                Mention::Read(_) => return,
            };
            if scope.meanings(&name).iter().any(|name| own.contains(name)) {
                return;
            }
            let name = name.join(".");
            changing |= CHANGING.contains(&name.as_str());
            if KNOWN.binary_search(&name.as_str()).is_err() {
                problems.insert(unknown(&name, span));
            }
        });
    }
    if problems.is_empty() {
        return Ok(changing);
    }
    Err(Vec::from_iter(problems).join("\n"))
}

fn unknown(name: &str, span: &Span) -> String {
    let place = place(span);
    match name {
        "http.send" => format!(
            "{place}: `http.send` is not available: policies do not call out; use `metadata`"
        ),
        _ if name.starts_with("io.jwt.") => format!(
            "{place}: `{name}` is not available: tokens are verified by `identity`, and their \
             claims are in `input.identity.claims`"
        ),
        _ => format!("{place}: the function `{name}` is not available"),
    }
}

fn place(span: &Span) -> String {
    let file = span.source.get_path();
    format!("{file}:{}:{}", span.line, span.col)
}

/// The functions that a module defines, from `data` on.
fn functions(module: &Module) -> Vec<String> {
    let package = path(&module.package.refr).unwrap_or_default();
    let defined = module.policy.iter().filter_map(|rule| {
        let name: &Expr = match rule.as_ref() {
            Rule::Spec {
                head: RuleHead::Func { refr, .. },
                ..
            } => refr,
            Rule::Default { refr, args, .. } if !args.is_empty() => refr,
            _ => return None,
        };
        path(name)
    });
    defined
        .map(|name| below_data(&[package.as_slice(), name.as_slice()].concat()))
        .collect()
}

fn below_data(path: &[&str]) -> String {
    format!("data.{}", path.join("."))
}

/// What names can mean within a module.
struct Scope<'m> {
    package: Vec<&'m str>,
    /// Imports by the name that they have here.
    imports: Vec<(&'m str, Vec<&'m str>)>,
}

impl<'m> Scope<'m> {
    fn of(module: &'m Module) -> Self {
        Self {
            package: path(&module.package.refr).unwrap_or_default(),
            imports: imports(module),
        }
    }

    /// The full names that a function's name can stand for.
    fn meanings(&self, name: &[&str]) -> Vec<String> {
        let Some((first, rest)) = name.split_first() else {
            return Vec::new();
        };
        if *first == "data" {
            return vec![name.join(".")];
        }
        let imported = self.imports.iter().filter(|(known, _)| known == first);
        let imported = imported.map(|(_, path)| [path.as_slice(), rest].concat().join("."));
        let own = below_data(&[self.package.as_slice(), name].concat());
        imported.chain([own]).collect()
    }
}

/// The imports of a module: the name that each has there, and what it stands for.
pub(super) fn imports(module: &Module) -> Vec<(&str, Vec<&str>)> {
    let imports = module.imports.iter().filter_map(|import| {
        let path = path(&import.refr)?;
        let name = match &import.r#as {
            Some(name) => name.text(),
            None => path.last()?,
        };
        Some((name, path))
    });
    imports.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_functions_are_sorted_so_that_they_are_found() {
        assert!(KNOWN.is_sorted());
        for changing in CHANGING {
            assert!(KNOWN.contains(changing));
        }
    }
}
