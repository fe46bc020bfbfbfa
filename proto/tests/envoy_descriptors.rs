//! Compares our messages and services with the real ones.
//!
//! Envoy's binary holds the descriptor of every protobuf file that it was built
//! from. This test reads them out of it and holds ours against them: every
//! message, field, enum value and method of ours has to be there with the same
//! facts, and whatever Envoy has beyond ours has to stand in
//! `envoy_omissions.txt` with a reason. Options (what is outdated, what a valid
//! value is) are not compared.
//!
//! The binary is the file that `ATTACHE_ENVOY` names, else `target/tools/envoy`
//! of the workspace. Without one only the comparison itself is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

/// What Envoy has and we leave out, and why.
const OMISSIONS: &str = include_str!("envoy_omissions.txt");

#[test]
fn ours_agree_with_the_envoy_binary() {
    let Some(path) = envoy_binary().unwrap() else {
        println!("skipped: no Envoy binary to compare with (run cargo xtask test)");
        return;
    };
    let upstream = embedded_files(&fs::read(&path).unwrap());
    let omissions = Omissions::parse(OMISSIONS).unwrap();

    let problems = compare(&our_files().unwrap(), &upstream, &omissions);

    assert!(
        problems.is_empty(),
        "{} differences from {}:\n{}",
        problems.len(),
        path.display(),
        problems.join("\n")
    );
}

/// Of the resources of discovery only the fields are compared, and a stand-in counts: `bytes` for
/// a message, `int32` for an enum. None may be left out, or a refusal could not name it.
#[test]
fn every_field_of_a_resource_can_be_named() {
    let Some(path) = envoy_binary().unwrap() else {
        println!("skipped: no Envoy binary to compare with (run cargo xtask test)");
        return;
    };
    let upstream = fields_by_message(&embedded_files(&fs::read(&path).unwrap()));
    let ours = FileDescriptorSet::decode(attache_proto::RESOURCE_DESCRIPTOR_SET).unwrap();
    let shared: BTreeSet<_> = our_files()
        .unwrap()
        .iter()
        .map(|f| f.name().to_owned())
        .collect();
    let ours = ours
        .file
        .into_iter()
        .filter(|file| !file.package().starts_with("google.") && !shared.contains(file.name()));

    let problems: Vec<String> = fields_by_message(&ours.collect::<Vec<_>>())
        .into_iter()
        .flat_map(|(message, fields)| match upstream.get(&message) {
            None => vec![format!("{message}: Envoy has no such message")],
            Some(theirs) => stand_in_differences(&message, &fields, theirs),
        })
        .collect();

    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A field by its name: number, whether it is repeated, and type.
type Fields = BTreeMap<String, (i32, bool, Type)>;

fn fields_by_message(files: &[FileDescriptorProto]) -> BTreeMap<String, Fields> {
    fn walk(scope: &str, message: &DescriptorProto, found: &mut BTreeMap<String, Fields>) {
        if message.options.as_ref().is_some_and(|o| o.map_entry()) {
            return;
        }
        let name = format!("{scope}.{}", message.name());
        let fields = message.field.iter().map(|field| {
            let repeated = field.label() == Label::Repeated;
            (
                field.name().to_owned(),
                (field.number(), repeated, field.r#type()),
            )
        });
        found.insert(name.clone(), fields.collect());
        for nested in &message.nested_type {
            walk(&name, nested, found);
        }
    }
    let mut found = BTreeMap::new();
    for file in files {
        for message in &file.message_type {
            walk(file.package(), message, &mut found);
        }
    }
    found
}

fn stand_in_differences(message: &str, ours: &Fields, theirs: &Fields) -> Vec<String> {
    let stands_in = |ours: Type, theirs: Type| {
        ours == theirs
            || matches!(
                (ours, theirs),
                (Type::Bytes, Type::Message) | (Type::Int32, Type::Enum)
            )
    };
    let mut problems = Vec::new();
    for (name, theirs) in theirs {
        match ours.get(name) {
            Some(ours)
                if ours.0 == theirs.0 && ours.1 == theirs.1 && stands_in(ours.2, theirs.2) => {}
            Some(ours) => problems.push(format!(
                "{message}.{name}: we have {ours:?}, Envoy has {theirs:?}"
            )),
            None => problems.push(format!(
                "{message}.{name}: Envoy has {theirs:?}, we have nothing"
            )),
        }
    }
    for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
        problems.push(format!("{message}.{name}: Envoy has no such field"));
    }
    problems
}

/// The binary to read, if there is one. A binary that was asked for by name has
/// to be there.
fn envoy_binary() -> Result<Option<PathBuf>, Box<dyn Error>> {
    if let Some(path) = env::var_os("ATTACHE_ENVOY").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            return Err(format!("ATTACHE_ENVOY: {} is not a file", path.display()).into());
        }
        return Ok(Some(path));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/tools/envoy");
    Ok(path.is_file().then_some(path))
}

/// Packages that Envoy's binary has no copy of, or none to compare with: the well-known types,
/// and what only rate limit services and their control planes speak.
const NOT_ENVOYS: [&str; 2] = ["google.protobuf", "ratelimit.config.ratelimit.v3"];

/// Our own files of packages that Envoy has too.
fn our_files() -> Result<Vec<FileDescriptorProto>, prost::DecodeError> {
    let mut set = FileDescriptorSet::decode(attache_proto::FILE_DESCRIPTOR_SET)?;
    set.file
        .retain(|file| !NOT_ENVOYS.contains(&file.package()));
    Ok(set.file)
}

// ---- reading descriptors out of a binary ------------------------------------

/// Finds the file descriptors that a program carries in its data.
///
/// One begins with field 1, the file's name, and goes on with field 2, its
/// package. Nothing says where it ends, but the fields of a descriptor stand in
/// the order of their numbers, so a number that is lower or unknown is no part
/// of it any more. A few files are there more than once.
fn embedded_files(data: &[u8]) -> Vec<FileDescriptorProto> {
    /// The end of a name, and then the tag of a package.
    const NEEDLE: &[u8] = b".proto\x12";

    let mut found = Vec::new();
    let mut rest = 0;
    while let Some(at) = find(data, rest, NEEDLE) {
        rest = at + 1;
        let end_of_name = at + NEEDLE.len() - 1;
        if let Some(start) = start_of_name(data, end_of_name) {
            found.extend(read_file(&data[start..], &data[start + 2..end_of_name]));
        }
    }
    found
}

/// The first place from `from` on where `needle` begins (Horspool's search: the
/// binary has a hundred megabytes, and tests run unoptimised).
fn find(data: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    let last = needle.len() - 1;
    let mut skip = [needle.len(); 256];
    for (i, byte) in needle[..last].iter().enumerate() {
        skip[usize::from(*byte)] = last - i;
    }

    let mut at = from;
    while let Some(byte) = data.get(at + last) {
        if *byte == needle[last] && data[at..].starts_with(needle) {
            return Some(at);
        }
        at += skip[usize::from(*byte)];
    }
    None
}

/// Where the tag of field 1 stands whose value ends at `end`; the length is one
/// octet, so the name has at most 127.
fn start_of_name(data: &[u8], end: usize) -> Option<usize> {
    (1..=127u8)
        .filter_map(|len| Some((len, end.checked_sub(usize::from(len) + 2)?)))
        .find(|(len, start)| data[*start] == 0x0a && data[*start + 1] == *len)
        .map(|(_, start)| start)
}

/// Reads the longest file descriptor at the beginning of `data`.
fn read_file(data: &[u8], name: &[u8]) -> Option<FileDescriptorProto> {
    field_ends(data).into_iter().rev().find_map(|end| {
        FileDescriptorProto::decode(&data[..end])
            .ok()
            .filter(|file| file.name().as_bytes() == name && !file.package().is_empty())
    })
}

/// The ends of the fields that follow each other as in a file descriptor.
fn field_ends(data: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut rest = data;
    let mut previous = 0;
    while let Ok((number, wire_type)) = decode_key(&mut rest) {
        if number < previous || !matches!(number, 1..=12 | 14) {
            break;
        }
        previous = number;
        let Ok(value) = decode_varint(&mut rest) else {
            break;
        };
        match wire_type {
            WireType::Varint => {}
            WireType::LengthDelimited => {
                let Some(after) = usize::try_from(value).ok().and_then(|n| rest.get(n..)) else {
                    break;
                };
                rest = after;
            }
            _ => break,
        }
        ends.push(data.len() - rest.len());
    }
    ends
}

// ---- comparing --------------------------------------------------------------

/// What is said about each element of a set of files, by its full name.
///
/// An enum's value is listed under its enum (`pkg.Enum.VALUE`), not beside it.
type Facts = BTreeMap<String, String>;

/// Every way in which our files are not what Envoy has.
fn compare(
    ours: &[FileDescriptorProto],
    upstream: &[FileDescriptorProto],
    omissions: &Omissions<'_>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut theirs = Facts::new();
    for file in upstream
        .iter()
        .filter(|theirs| is_of_interest(ours, theirs))
    {
        for (name, fact) in facts(file) {
            if let Some(other) = theirs.insert(name.clone(), fact.clone())
                && other != fact
            {
                problems.push(format!(
                    "{name}: Envoy itself says both `{other}` and `{fact}`"
                ));
            }
        }
    }
    let ours: Facts = ours.iter().flat_map(facts).collect();

    for (name, fact) in &ours {
        match theirs.get(name) {
            None => problems.push(format!("{name}: we have `{fact}`, Envoy has nothing")),
            Some(other) if other != fact => {
                problems.push(format!("{name}: we have `{fact}`, Envoy has `{other}`"));
            }
            Some(_) => {}
        }
    }

    let mut omitted = BTreeSet::new();
    for (name, fact) in &theirs {
        if ours.contains_key(name) || is_part_of_one(name, &omitted) {
            continue;
        }
        omitted.insert(name.as_str());
        if !omissions.0.contains_key(name.as_str()) {
            problems.push(format!(
                "{name}: Envoy has `{fact}`, which is left out without a reason"
            ));
        }
    }
    for name in omissions.0.keys().filter(|name| !omitted.contains(*name)) {
        problems.push(format!("{name}: has a reason, but is not left out"));
    }
    problems
}

/// Whether a file of Envoy's is one of ours, or belongs to a package in which
/// we have a service: such a package is to be complete.
fn is_of_interest(ours: &[FileDescriptorProto], theirs: &FileDescriptorProto) -> bool {
    ours.iter().any(|ours| {
        ours.name() == theirs.name()
            || (ours.package() == theirs.package() && !ours.service.is_empty())
    })
}

/// Whether something is part of a thing that is left out as a whole.
fn is_part_of_one(name: &str, omitted: &BTreeSet<&str>) -> bool {
    name.match_indices('.')
        .any(|(dot, _)| omitted.contains(&name[..dot]))
}

/// What a file says.
fn facts(file: &FileDescriptorProto) -> Facts {
    let mut facts = Facts::new();
    let package = file.package();
    facts.insert(
        file.name().to_owned(),
        format!("{} file of package {package}", file.syntax()),
    );
    for message in &file.message_type {
        message_facts(package, message, &mut facts);
    }
    for enumeration in &file.enum_type {
        enum_facts(package, enumeration, &mut facts);
    }
    for service in &file.service {
        service_facts(package, service, &mut facts);
    }
    facts
}

fn message_facts(scope: &str, message: &DescriptorProto, facts: &mut Facts) {
    let name = format!("{scope}.{}", message.name());
    let kind = match message.options.as_ref().is_some_and(|o| o.map_entry()) {
        true => "map entry",
        false => "message",
    };
    let reserved = reserved(
        message
            .reserved_range
            .iter()
            // The end is the number after the last one.
            .map(|range| (range.start(), range.end().saturating_sub(1))),
        &message.reserved_name,
    );
    for field in &message.field {
        facts.insert(
            format!("{name}.{}", field.name()),
            field_fact(message, field),
        );
    }
    for nested in &message.nested_type {
        message_facts(&name, nested, facts);
    }
    for nested in &message.enum_type {
        enum_facts(&name, nested, facts);
    }
    facts.insert(name, format!("{kind}{reserved}"));
}

fn field_fact(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
        Label::Repeated => "repeated ",
        Label::Required => "required ",
    };
    let type_name = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name(),
        scalar => scalar.as_str_name(),
    };
    // An `optional` field has a oneof of its own, which says nothing more.
    let oneof = field
        .oneof_index
        .filter(|_| !field.proto3_optional())
        .and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?))
        .map(|oneof| format!(", one of {}", oneof.name()))
        .unwrap_or_default();
    format!("{label}{type_name} = {}{oneof}", field.number())
}

fn enum_facts(scope: &str, enumeration: &EnumDescriptorProto, facts: &mut Facts) {
    let name = format!("{scope}.{}", enumeration.name());
    let reserved = reserved(
        enumeration
            .reserved_range
            .iter()
            .map(|range| (range.start(), range.end())),
        &enumeration.reserved_name,
    );
    for value in &enumeration.value {
        facts.insert(
            format!("{name}.{}", value.name()),
            format!("= {}", value.number()),
        );
    }
    facts.insert(name, format!("enum{reserved}"));
}

fn reserved(ranges: impl Iterator<Item = (i32, i32)>, names: &[String]) -> String {
    let list: Vec<String> = ranges
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first} to {last}"),
        })
        .chain(names.iter().cloned())
        .collect();
    match list.is_empty() {
        true => String::new(),
        false => format!(", reserved {}", list.join(", ")),
    }
}

fn service_facts(scope: &str, service: &ServiceDescriptorProto, facts: &mut Facts) {
    let name = format!("{scope}.{}", service.name());
    let stream = |streaming| if streaming { "stream " } else { "" };
    for method in &service.method {
        let fact = format!(
            "rpc ({}{}) returns ({}{})",
            stream(method.client_streaming()),
            method.input_type(),
            stream(method.server_streaming()),
            method.output_type(),
        );
        facts.insert(format!("{name}.{}", method.name()), fact);
    }
    facts.insert(name, "service".to_owned());
}

/// The written reasons, by the full name of what is left out. Leaving out a
/// message, enum or service leaves out what is in it.
struct Omissions<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Omissions<'a> {
    /// Reads lines of `name: reason`; `#` begins a comment line.
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut reasons = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, reason) = line
                .split_once(':')
                .map(|(name, reason)| (name.trim(), reason.trim()))
                .filter(|(name, reason)| !name.is_empty() && !reason.is_empty())
                .ok_or_else(|| format!("line {number}: not `name: reason`"))?;
            if reasons.insert(name, reason).is_some() {
                return Err(format!("line {number}: {name} for the second time"));
            }
        }
        Ok(Self(reasons))
    }
}

// ---- the comparison is tested as well, so that its silence means something ---

#[cfg(test)]
mod self_test {
    use super::*;

    const NOTHING_LEFT_OUT: &str = "";
    const EXT_PROC: &str = "envoy/service/ext_proc/v3/external_processor.proto";
    const CORE: &str = "envoy/config/core/v3/base.proto";

    /// Our files against themselves with a change: what is reported.
    fn problems_when(omissions: &str, file: &str, change: Change) -> Vec<String> {
        let mut upstream = our_files().unwrap();
        change(upstream.iter_mut().find(|f| f.name() == file).unwrap());
        let omissions = Omissions::parse(omissions).unwrap();
        compare(&our_files().unwrap(), &upstream, &omissions)
    }

    type Change = fn(&mut FileDescriptorProto);

    fn message<'a>(file: &'a mut FileDescriptorProto, name: &str) -> &'a mut DescriptorProto {
        file.message_type
            .iter_mut()
            .find(|message| message.name() == name)
            .unwrap()
    }

    #[test]
    fn equal_files_have_no_differences() {
        assert_eq!(
            problems_when(NOTHING_LEFT_OUT, CORE, |_| ()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_kind_of_difference_is_reported() {
        let cases: [(&str, Change, &[&str]); 12] = [
            (
                EXT_PROC,
                |f| message(f, "HttpBody").field[1].number = Some(9),
                &[
                    "envoy.service.ext_proc.v3.HttpBody.end_of_stream: we have `TYPE_BOOL = 2`, \
                   Envoy has `TYPE_BOOL = 9`",
                ],
            ),
            (
                EXT_PROC,
                |f| message(f, "HttpBody").field[0].set_type(Type::String),
                &[
                    "envoy.service.ext_proc.v3.HttpBody.body: we have `TYPE_BYTES = 1`, \
                   Envoy has `TYPE_STRING = 1`",
                ],
            ),
            (
                CORE,
                |f| message(f, "HeaderMap").field[0].set_label(Label::Optional),
                &["envoy.config.core.v3.HeaderMap.headers: we have \
                   `repeated .envoy.config.core.v3.HeaderValue = 1`, \
                   Envoy has `.envoy.config.core.v3.HeaderValue = 1`"],
            ),
            (
                CORE,
                |f| message(f, "HeaderValue").field[0].proto3_optional = Some(true),
                &[
                    "envoy.config.core.v3.HeaderValue.key: we have `TYPE_STRING = 1`, \
                   Envoy has `optional TYPE_STRING = 1`",
                ],
            ),
            (
                EXT_PROC,
                |f| message(f, "BodyMutation").field[1].oneof_index = None,
                &[
                    "envoy.service.ext_proc.v3.BodyMutation.clear_body: we have \
                   `TYPE_BOOL = 2, one of mutation`, Envoy has `TYPE_BOOL = 2`",
                ],
            ),
            (
                EXT_PROC,
                |f| {
                    message(f, "HttpTrailers").field[0].type_name =
                        Some(".envoy.config.core.v3.Metadata".to_owned());
                },
                &["envoy.service.ext_proc.v3.HttpTrailers.trailers: we have \
                   `.envoy.config.core.v3.HeaderMap = 1`, \
                   Envoy has `.envoy.config.core.v3.Metadata = 1`"],
            ),
            (
                EXT_PROC,
                |f| message(f, "ProcessingRequest").reserved_name.clear(),
                &["envoy.service.ext_proc.v3.ProcessingRequest: we have \
                   `message, reserved 1, async_mode`, Envoy has `message, reserved 1`"],
            ),
            (
                CORE,
                |f| message(f, "HeaderValueOption").enum_type[0].value[1].number = Some(7),
                &[
                    "envoy.config.core.v3.HeaderValueOption.HeaderAppendAction.ADD_IF_ABSENT: \
                   we have `= 1`, Envoy has `= 7`",
                ],
            ),
            (
                EXT_PROC,
                |f| f.service[0].method[0].client_streaming = Some(false),
                &[
                    "envoy.service.ext_proc.v3.ExternalProcessor.Process: we have \
                   `rpc (stream .envoy.service.ext_proc.v3.ProcessingRequest) \
                   returns (stream .envoy.service.ext_proc.v3.ProcessingResponse)`, \
                   Envoy has `rpc (.envoy.service.ext_proc.v3.ProcessingRequest) \
                   returns (stream .envoy.service.ext_proc.v3.ProcessingResponse)`",
                ],
            ),
            (
                EXT_PROC,
                |f| drop(message(f, "GrpcStatus").field.pop()),
                &[
                    "envoy.service.ext_proc.v3.GrpcStatus.status: we have `TYPE_UINT32 = 1`, \
                   Envoy has nothing",
                ],
            ),
            (
                CORE,
                |f| message(f, "QueryParameter").name = Some("Parameter".to_owned()),
                &[
                    "envoy.config.core.v3.QueryParameter: we have `message`, Envoy has nothing",
                    "envoy.config.core.v3.QueryParameter.key: we have `TYPE_STRING = 1`, \
                   Envoy has nothing",
                    "envoy.config.core.v3.QueryParameter.value: we have `TYPE_STRING = 2`, \
                   Envoy has nothing",
                    "envoy.config.core.v3.Parameter: Envoy has `message`, \
                   which is left out without a reason",
                ],
            ),
            (
                EXT_PROC,
                |f| f.name = Some("envoy/service/ext_proc/v3/other.proto".to_owned()),
                &[
                    "envoy/service/ext_proc/v3/external_processor.proto: we have \
                   `proto3 file of package envoy.service.ext_proc.v3`, Envoy has nothing",
                    "envoy/service/ext_proc/v3/other.proto: Envoy has \
                   `proto3 file of package envoy.service.ext_proc.v3`, \
                   which is left out without a reason",
                ],
            ),
        ];
        for (file, change, expected) in cases {
            assert_eq!(problems_when(NOTHING_LEFT_OUT, file, change), expected);
        }
    }

    #[test]
    fn an_omission_needs_a_reason_that_applies() {
        let more: Change = |file| {
            let mut field = message(file, "HeaderValue").field[0].clone();
            field.name = Some("more".to_owned());
            field.number = Some(40);
            message(file, "HeaderValue").field.push(field);
        };
        let reason = "envoy.config.core.v3.HeaderValue.more: not needed";

        assert_eq!(
            problems_when(NOTHING_LEFT_OUT, CORE, more),
            [
                "envoy.config.core.v3.HeaderValue.more: Envoy has `TYPE_STRING = 40`, \
               which is left out without a reason"
            ]
        );
        assert_eq!(problems_when(reason, CORE, more), Vec::<String>::new());
        assert_eq!(
            problems_when(reason, CORE, |_| ()),
            ["envoy.config.core.v3.HeaderValue.more: has a reason, but is not left out"]
        );
    }

    #[test]
    fn two_different_copies_are_reported() {
        let mut upstream = our_files().unwrap();
        let mut copy = upstream.iter().find(|f| f.name() == CORE).unwrap().clone();
        message(&mut copy, "HeaderValue").field[0].number = Some(9);
        upstream.push(copy);

        let problems = compare(
            &our_files().unwrap(),
            &upstream,
            &Omissions::parse(NOTHING_LEFT_OUT).unwrap(),
        );

        assert!(problems[0].contains("Envoy itself says both"));
    }

    #[test]
    fn malformed_reasons_are_refused() {
        for text in ["a.b", "a.b:", ": reason", "a: one\na: two"] {
            assert!(Omissions::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn descriptors_are_found_between_other_data() {
        let files = our_files().unwrap();
        let mut data = b"\x7fELF no.proto\x12 \x0a\x06.proto\x12\xff".to_vec();
        for file in &files {
            data.extend(b"text.proto\x00\x0a");
            data.extend(file.encode_to_vec());
            // What follows looks like a field at first sight.
            data.extend(b"\x0a\x05other");
        }
        data.extend(b".proto\x12");

        let found = embedded_files(&data);

        let names = |files: &[FileDescriptorProto]| -> Vec<String> {
            files.iter().map(|file| file.name().to_owned()).collect()
        };
        assert_eq!(names(&found), names(&files));
        assert!(found == files);
    }

    #[test]
    fn a_descriptor_may_be_cut_off_at_the_end() {
        let file = our_files().unwrap().remove(0);
        let mut data = file.encode_to_vec();
        data.pop();

        let found = embedded_files(&data);

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message_type, file.message_type);
        assert_eq!(found[0].syntax, None);
    }
}
