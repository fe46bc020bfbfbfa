//! Licence expressions (SPDX), and whether a list of licences satisfies one.

/// Whether `expression` can be met with the `allowed` licences alone.
///
/// Older crates write `MIT/Apache-2.0`; the slash means `OR`. An exception
/// (`WITH …`) only ever grants more, so the licence before it decides.
pub(crate) fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_ascii_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        allowed,
    };
    let met = parser.any();
    met && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Parser<'_> {
    /// `all OR all …`
    fn any(&mut self) -> bool {
        let mut met = self.all();
        while self.take("OR") {
            met |= self.all();
        }
        met
    }

    /// `one AND one …`
    fn all(&mut self) -> bool {
        let mut met = self.one();
        while self.take("AND") {
            met &= self.one();
        }
        met
    }

    /// A licence, or an expression in parentheses.
    fn one(&mut self) -> bool {
        if self.take("(") {
            let met = self.any();
            return self.take(")") && met;
        }
        let Some((name, rest)) = self.words.split_first() else {
            return false;
        };
        self.words = rest;
        if self.take("WITH") {
            self.words = self.words.get(1..).unwrap_or_default();
        }
        self.allowed.iter().any(|allowed| allowed == name)
    }

    fn take(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_with_their_precedence() {
        let allowed = ["MIT", "Apache-2.0", "ISC"].map(str::to_owned);
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("(GPL-3.0 OR MIT) AND ISC", true),
            ("(GPL-3.0 OR MIT) AND BSD-3-Clause", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-3.0 WITH Classpath-exception-2.0 OR MIT", true),
            ("", false),
            ("MIT )", false),
            ("(MIT", false),
        ] {
            assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
        }
    }
}
