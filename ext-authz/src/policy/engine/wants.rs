//! Which parts of its input a policy can read.

use std::collections::BTreeMap;

use regorus::unstable::{Module, Ref};

use super::{
    builtins::imports,
    syntax::{Mention, walk},
};

/// A part of the input: wanted whole, or some of its fields.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wants {
    whole: bool,
    fields: BTreeMap<String, Wants>,
}

static WHOLE: Wants = Wants {
    whole: true,
    fields: BTreeMap::new(),
};

impl Wants {
    /// All that there is.
    #[cfg(feature = "opa-wasm")]
    pub(super) fn everything() -> &'static Self {
        &WHOLE
    }

    /// What some modules mention of the input; what is computed counts as all of it.
    pub(super) fn of(modules: &[Ref<Module>]) -> Self {
        let mut wants = Self::default();
        for module in modules {
            let imports = imports(module);
            walk(module, &mut |mention| {
                let Mention::Read(path) = mention else { return };
                let Some((first, rest)) = path.split_first() else {
                    return;
                };
                if *first == "input" {
                    wants.add(rest);
                }
                for (_, path) in imports.iter().filter(|(name, _)| name == first) {
                    if let Some((&"input", before)) = path.split_first() {
                        wants.add(&[before, rest].concat());
                    }
                }
            });
        }
        wants
    }

    fn add(&mut self, path: &[&str]) {
        if self.whole {
            return;
        }
        match path.split_first() {
            Some((first, rest)) => self
                .fields
                .entry((*first).to_owned())
                .or_default()
                .add(rest),
            None => {
                *self = Self {
                    whole: true,
                    ..Self::default()
                }
            }
        }
    }

    /// What is wanted of a field; `None` when nothing.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        if self.whole {
            return Some(&WHOLE);
        }
        self.fields.get(name)
    }

    /// The fields that are wanted; `None` when all are.
    pub(super) fn fields(&self) -> Option<impl Iterator<Item = (&str, &Self)>> {
        let fields = self
            .fields
            .iter()
            .map(|(name, wants)| (name.as_str(), wants));
        (!self.whole).then_some(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(modules: &[&str]) -> Wants {
        let mut engine = regorus::Engine::new();
        for (number, module) in modules.iter().enumerate() {
            engine
                .add_policy(format!("{number}.rego"), (*module).to_owned())
                .unwrap();
        }
        Wants::of(engine.get_modules())
    }

    fn of_paths(paths: &[&str]) -> Wants {
        let mut wants = Wants::default();
        for path in paths {
            wants.add(
                &path
                    .split('/')
                    .filter(|name| !name.is_empty())
                    .collect::<Vec<_>>(),
            );
        }
        wants
    }

    #[test]
    fn a_policy_wants_what_it_mentions() {
        for (modules, expected) in [
            (&["package a\nallow if data.x == 1"][..], &[][..]),
            (
                &["package a\nallow if input.method == \"GET\""],
                &["method"],
            ),
            (
                &["package a\nallow if { some h; input.headers[h] == input.a[\"b c\"].d }"],
                &["headers", "a/b c/d"],
            ),
            (&["package a\nallow if input.a[input.b].c"], &["a", "b"]),
            (
                &[
                    "package a\nimport input.attributes.request.http as http\nallow if http.method == \"GET\"",
                ],
                &["attributes/request/http/method"],
            ),
            (
                &["package a\nimport input.claims\nallow if \"x\" in claims.roles"],
                &["claims/roles"],
            ),
            (
                &[
                    "package a\nimport data.b\nallow if b.f(input.x)",
                    "package b\nf(x) if x == input.y",
                ],
                &["x", "y"],
            ),
            (
                &["package a\nallow if object.get(input, \"x\", 0) == 1"],
                &[""],
            ),
            (
                &["package a\nallow if f(1) with input as {\"x\": input.y}\nf(_) := 1"],
                &["y"],
            ),
            (
                &["package a\nd[input.k] contains v if v := [x | x := input.l[_]][0]"],
                &["k", "l"],
            ),
            (
                &["package a\nallow if every x in input.l { x == input.m }"],
                &["l", "m"],
            ),
        ] {
            assert_eq!(wants(modules), of_paths(expected), "{modules:?}");
        }
    }
}
