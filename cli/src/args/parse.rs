//! From the words of a command line to what is meant.

use std::ffi::OsString;

use clap::{
    ArgMatches, Command, CommandFactory as _, Error, FromArgMatches as _, error::ErrorKind,
    parser::ValueSource,
};

use super::Args;

impl Args {
    /// What a command line means. One that is wrong, or asks for help, ends the process.
    pub(crate) fn of(words: impl IntoIterator<Item = OsString>) -> Self {
        Self::try_of(words).unwrap_or_else(|error| error.exit())
    }

    fn try_of(words: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(words)?;
        refuse_mixture(&mut command, &matches)?;
        Self::from_arg_matches(&matches)
    }
}

/// Options of a service mean nothing to the commands around it. Those that all commands have may
/// stand anywhere.
fn refuse_mixture(command: &mut Command, matches: &ArgMatches) -> Result<(), Error> {
    let Some((name, inner)) = matches.subcommand() else {
        return Ok(());
    };
    let given = command.get_arguments().find(|argument| {
        let id = argument.get_id().as_str();
        !argument.is_global_set() && matches.value_source(id) == Some(ValueSource::CommandLine)
    });
    if let Some(given) = given {
        let text = format!("`{given}` cannot be used with `{name}`");
        return Err(command.error(ErrorKind::ArgumentConflict, text));
    }
    match command.find_subcommand_mut(name) {
        Some(command) => refuse_mixture(command, inner),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Args, ErrorKind> {
        let words = words.split(' ').map(OsString::from);
        Args::try_of(words).map_err(|error| error.kind())
    }

    #[test]
    fn options_of_all_commands_stand_before_or_behind_a_command() {
        for words in [
            "attache --log debug ratelimit check limits",
            "attache ratelimit --log debug check limits",
            "attache ratelimit check limits --log debug",
            "attache ratelimit check --log=debug limits",
            "attache ext-authz --log debug check auth.yaml",
        ] {
            let args = parse(words).unwrap();
            assert_eq!(args.log.log.as_deref(), Some("debug"), "{words}");
        }
    }

    #[test]
    fn options_of_a_service_are_none_of_the_commands_around_it() {
        for words in [
            "attache ratelimit --config limits check limits",
            "attache ratelimit --store memory check limits",
            "attache ext-authz --config auth.yaml check auth.yaml",
            "attache ext-authz --listen 127.0.0.1:1 check auth.yaml",
        ] {
            assert_eq!(
                parse(words).err(),
                Some(ErrorKind::ArgumentConflict),
                "{words}"
            );
        }
    }
}
