//! Rules whose name has `*` in it.

/// A pattern of literals with `*` (any text, also none) between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wildcard {
    first: Box<str>,
    middle: Box<[Box<str>]>,
    last: Box<str>,
    length: usize,
    text: Box<str>,
}

impl Wildcard {
    /// The pattern in `name`, if there is a `*` in it.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (first, rest) = name.split_once('*')?;
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let middle: Box<[Box<str>]> = middle
            .split('*')
            .filter(|literal| !literal.is_empty())
            .map(Into::into)
            .collect();
        Some(Self {
            length: first.len()
                + last.len()
                + middle.iter().map(|literal| literal.len()).sum::<usize>(),
            first: first.into(),
            middle,
            last: last.into(),
            text: name.into(),
        })
    }

    /// The pattern as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether `text` starts and ends as the pattern does and has the other literals in order
    /// between, none overlapping.
    pub(crate) fn matches(&self, text: &str) -> bool {
        if text.len() < self.length {
            return false;
        }
        let inner = text
            .strip_prefix(&*self.first)
            .and_then(|rest| rest.strip_suffix(&*self.last));
        let Some(mut rest) = inner else { return false };
        for literal in &self.middle {
            match rest.split_once(&**literal) {
                Some((_, behind)) => rest = behind,
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_found_in_order_without_overlap() {
        let table = [
            ("wild_foo*", "wild_foo1", true),
            ("wild_foo*", "wild_foo", true),
            ("wild_foo*", "wild_bar", false),
            ("bar*b", "barab", true),
            ("bar*b", "bar123b", true),
            ("bar*b", "barb", true),
            ("bar*b", "bara", false),
            ("bar*b", "xbarb", false),
            ("foo*bar*baz", "foobarbaz", true),
            ("foo*bar*baz", "foo123bar456baz", true),
            ("foo*bar*baz", "foo123baz", false),
            ("foo*bar*baz", "bar456baz", false),
            ("ab*ba", "aba", false),
            ("a*b*b", "ab", false),
            ("*", "", true),
            ("**", "anything", true),
            ("k_*", "k_", true),
        ];
        for (pattern, text, expected) in table {
            let wildcard = Wildcard::parse(pattern).unwrap();
            assert_eq!(wildcard.matches(text), expected, "{pattern} {text}");
        }
        assert_eq!(Wildcard::parse("plain"), None);
    }
}
