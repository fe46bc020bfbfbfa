//! Syntax errors, in words for people who do not know YAML by heart.

use granit_parser::{ErrorKind, ScanError};

/// What is wrong. `line` is the text of the line it was noticed on.
pub(crate) fn explain(error: &ScanError, line: &str) -> String {
    let message = match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart => "a tab; YAML is indented with spaces only".to_owned(),
        ErrorKind::MappingValueNotAllowed => {
            "no `key: value` can stand here; check the indentation, and quote text that has a `: `"
                .to_owned()
        }
        ErrorKind::BlockSequenceEntryNotAllowed => {
            "no list can begin here; check the indentation".to_owned()
        }
        ErrorKind::InvalidQuotedScalarIndent | ErrorKind::UnclosedQuotedScalar => {
            "a quote opened above is not closed".to_owned()
        }
        ErrorKind::UnexpectedCharacter { character } => {
            let character: String = character.escape_debug().collect();
            format!("text cannot begin with `{character}`; quote it")
        }
        _ => error.info(),
    };
    if line.contains("${") {
        format!("{message} (inside `[ ]` and `{{ }}`, `${{NAME}}` has to be quoted)")
    } else {
        message
    }
}

/// Where to point: the parser notices a tab only behind it.
pub(crate) fn column(error: &ScanError, line: &str) -> usize {
    let column = error.marker().col();
    let tab = column
        .checked_sub(1)
        .filter(|before| line.chars().nth(*before) == Some('\t'));
    tab.unwrap_or(column)
}
