//! The names that conditions know.

/// What a condition starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Request,
    Source,
    Identity,
    /// `context_extensions` of the proxy's route, all of them text.
    Context,
    /// What was looked up about the request, by name.
    Metadata,
}

/// What a condition can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Method,
    Path,
    Query,
    Parameters,
    Host,
    Scheme,
    Headers,
    Cookies,
    Body,
    Address,
    Principal,
    IdentitySource,
    Claims,
    Context,
    Metadata,
}

const ROOTS: [(&str, Root); 5] = [
    ("request", Root::Request),
    ("source", Root::Source),
    ("identity", Root::Identity),
    ("context", Root::Context),
    ("metadata", Root::Metadata),
];

impl Root {
    /// The root of this name, or why there is none.
    pub(super) fn of(name: &str) -> Result<Self, String> {
        let root = ROOTS.iter().find(|(known, _)| *known == name);
        root.map(|(_, root)| *root).ok_or_else(|| {
            let known = listed(ROOTS.iter().map(|(name, _)| *name));
            format!("there is no `{name}` here; there are {known}")
        })
    }

    fn name(self) -> &'static str {
        let root = ROOTS.iter().find(|(_, root)| *root == self);
        root.map_or("", |(name, _)| name)
    }

    fn attributes(self) -> &'static [(&'static str, Attribute)] {
        match self {
            Self::Request => &[
                ("method", Attribute::Method),
                ("path", Attribute::Path),
                ("query", Attribute::Query),
                ("parameters", Attribute::Parameters),
                ("host", Attribute::Host),
                ("scheme", Attribute::Scheme),
                ("headers", Attribute::Headers),
                ("cookies", Attribute::Cookies),
                ("body", Attribute::Body),
            ],
            Self::Source => &[
                ("address", Attribute::Address),
                ("principal", Attribute::Principal),
            ],
            Self::Identity => &[
                ("source", Attribute::IdentitySource),
                ("claims", Attribute::Claims),
            ],
            Self::Context | Self::Metadata => &[],
        }
    }

    /// The attribute of this name, or why there is none.
    pub(super) fn attribute(self, name: &str) -> Result<Attribute, String> {
        let attributes = self.attributes();
        let attribute = attributes.iter().find(|(known, _)| *known == name);
        attribute.map(|(_, attribute)| *attribute).ok_or_else(|| {
            let root = self.name();
            format!("`{root}` has no `{name}`; it has {}", self.listed())
        })
    }

    /// What it has, for people.
    pub(super) fn listed(self) -> String {
        listed(self.attributes().iter().map(|(name, _)| *name))
    }
}

impl Attribute {
    /// Whether it is looked into by names that nobody can list beforehand.
    pub(super) fn is_map(self) -> bool {
        matches!(
            self,
            Self::Parameters
                | Self::Headers
                | Self::Cookies
                | Self::Claims
                | Self::Context
                | Self::Metadata
        )
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    names.join(", ")
}
