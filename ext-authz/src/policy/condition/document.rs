//! What conditions look into: read from the check when they ask for it.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use cel::{
    ExecutionError,
    common::{
        traits::{Container, Indexer},
        types::{
            CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
            MAP_TYPE, Type,
        },
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use serde_json::Value as Json;

use super::vocabulary::{Attribute, Root};
use crate::{policy::facts::Facts, server::Body};

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let object = match Root::of(variable).ok()? {
            Root::Context => Object::Map(*self, Attribute::Context),
            Root::Metadata => Object::Map(*self, Attribute::Metadata),
            root => Object::Root(*self, root),
        };
        Some(CowVal::owned(object))
    }
}

/// What has names in it.
#[derive(Debug, Clone, Copy)]
enum Object<'a> {
    Root(Facts<'a>, Root),
    /// One of the attributes that are maps.
    Map(Facts<'a>, Attribute),
}

impl<'a> Object<'a> {
    fn find(&self, key: &str) -> Option<Box<dyn Val + 'a>> {
        match self {
            Self::Root(facts, root) => attribute(facts, root.attribute(key).ok()?),
            Self::Map(facts, attribute) => entry(facts, *attribute, key),
        }
    }
}

fn text<'a>(text: impl Into<Cow<'a, str>>) -> Box<dyn Val + 'a> {
    Box::new(CelString::from(text.into()))
}

/// The value of an attribute; `None` when the request has none.
fn attribute<'a>(facts: &Facts<'a>, attribute: Attribute) -> Option<Box<dyn Val + 'a>> {
    let check = facts.check;
    Some(match attribute {
        Attribute::Method => text(check.method()?),
        Attribute::Path => text(check.path()?),
        Attribute::Query => text(check.query().unwrap_or_default()),
        Attribute::Host => text(check.host()?),
        Attribute::Scheme => text(check.scheme()?),
        Attribute::Body => match check.body() {
            Body::Whole(body) => text(std::str::from_utf8(body).ok()?),
            Body::Absent | Body::Partial(_) => return None,
        },
        Attribute::Address => text(check.source_ip()?.to_string()),
        Attribute::Principal => text(check.principal()?),
        Attribute::IdentitySource => text(facts.source),
        Attribute::Parameters
        | Attribute::Headers
        | Attribute::Cookies
        | Attribute::Claims
        | Attribute::Context
        | Attribute::Metadata => Box::new(Object::Map(*facts, attribute)),
    })
}

/// An entry of an attribute that is a map.
fn entry<'a>(facts: &Facts<'a>, map: Attribute, key: &str) -> Option<Box<dyn Val + 'a>> {
    let check = facts.check;
    Some(match map {
        Attribute::Headers => text(check.header(&key.to_ascii_lowercase())?),
        Attribute::Cookies => text(check.cookie(key).next()?),
        Attribute::Context => text(check.context(key)?),
        Attribute::Parameters => {
            let values: Vec<Box<dyn Val>> = check
                .parameter(key)
                .map(|value| text(value.into_owned()))
                .collect();
            if values.is_empty() {
                return None;
            }
            Box::new(CelList::from(values))
        }
        Attribute::Claims => from_json(facts.caller.claims()?.get(key)?),
        Attribute::Metadata => from_json(facts.metadata.get(key)?),
        _ => return None,
    })
}

fn from_json(value: &Json) -> Box<dyn Val + '_> {
    match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(value) => Box::new(CelBool::from(*value)),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Box::new(CelInt::from(number)),
            (None, Some(number)) => Box::new(CelUInt::from(number)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Json::String(value) => text(value),
        Json::Array(items) => {
            let items: Vec<Box<dyn Val + '_>> = items.iter().map(from_json).collect();
            Box::new(CelList::from(items))
        }
        Json::Object(fields) => {
            let entries: HashMap<CelMapKey<'_>, Box<dyn Val + '_>> = fields
                .iter()
                .map(|(name, value)| (CelMapKey::from(name.as_str()), from_json(value)))
                .collect();
            Box::new(CelMap::from(entries))
        }
    }
}

/// A value as JSON.
///
/// # Errors
/// When it has no form there.
pub(super) fn to_json(value: &dyn Val) -> Result<Json, String> {
    if value.downcast_ref::<CelNull>().is_some() {
        return Ok(Json::Null);
    }
    if let Some(value) = value.downcast_ref::<CelString<'_>>() {
        return Ok(value.inner().into());
    }
    if let Some(value) = value.downcast_ref::<CelBool>() {
        return Ok((*value.inner()).into());
    }
    if let Some(value) = value.downcast_ref::<CelInt>() {
        return Ok((*value.inner()).into());
    }
    if let Some(value) = value.downcast_ref::<CelUInt>() {
        return Ok((*value.inner()).into());
    }
    if let Some(value) = value.downcast_ref::<CelDouble>() {
        let number = serde_json::Number::from_f64(*value.inner());
        return number
            .map(Json::Number)
            .ok_or_else(|| "not a number".to_owned());
    }
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        let items = list.inner().iter().map(|item| to_json(item.as_ref()));
        return items.collect::<Result<_, _>>().map(Json::Array);
    }
    if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        let mut fields = serde_json::Map::new();
        for (key, value) in map.inner() {
            let key = key.inner().downcast_ref::<CelString<'_>>();
            let key = key.ok_or("a map whose keys are not text")?;
            fields.insert(key.inner().to_owned(), to_json(value.as_ref())?);
        }
        return Ok(Json::Object(fields));
    }
    Err("a value of this type has no form in JSON".to_owned())
}

impl Val for Object<'_> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Indexer for Object<'_> {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = key.downcast_ref::<CelString<'_>>().map(CelString::inner);
        name.and_then(|name| self.find(name))
            .map(CowVal::from)
            .ok_or_else(|| ExecutionError::NoSuchKey(Arc::new(name.unwrap_or_default().to_owned())))
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(key).map(CowVal::into_owned)
    }
}

impl Container for Object<'_> {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.get(key).is_ok())
    }
}
