//! Expressions that are more than the name of an attribute, evaluated by the `cel` crate.
//!
//! Objects are looked into only as far as the expression asks. What Envoy has switched off is
//! refused when the configuration is read: comprehensions, `string()`, and functions that it
//! does not know.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use cel::{
    Context, ExecutionError, IdedExpr, Value as CelValue,
    common::{
        ast::Expr,
        traits::{Container, Indexer, Sizer},
        types::{
            CelBool, CelBytes, CelDouble, CelDuration, CelInt, CelList, CelMap, CelMapKey, CelNull,
            CelString, CelTimestamp, CelUInt, Kind, MAP_TYPE, Type,
        },
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use chrono::{DateTime, FixedOffset, Utc};
use prost_types::value::Kind as JsonKind;

use super::{
    facts::{Facts, Fields, Value},
    plain,
    vocabulary::{self, Root},
};
use crate::{
    RequestContext,
    expression::{check_call, environment, is_type},
};

/// A compiled expression.
#[derive(Debug, Clone)]
pub(super) struct Program(Arc<IdedExpr>);

impl Program {
    /// Checks an expression: all names and functions in it must exist.
    pub(super) fn check(expression: IdedExpr) -> Result<Self, String> {
        check(&expression)?;
        Ok(Self(Arc::new(expression)))
    }

    /// The value; `None` when it has none, such as that of an absent header.
    pub(super) fn evaluate(&self, facts: &Facts<'_>) -> Option<Value<'static>> {
        let mut context = Context::with_env(environment());
        context.set_variable_resolver(facts);
        let value = CelValue::resolve_val(&self.0, &context).ok()?;
        from_cel(value.as_ref())
    }

    /// Whether the expression looks at `root`.
    pub(super) fn reads(&self, root: &str) -> bool {
        reads(&self.0, root)
    }
}

fn reads(expression: &IdedExpr, root: &str) -> bool {
    match &expression.expr {
        Expr::Ident(name) => name == root,
        Expr::Select(select) => reads(&select.operand, root),
        Expr::Call(call) => {
            call.target.iter().any(|target| reads(target, root))
                || call.args.iter().any(|arg| reads(arg, root))
        }
        Expr::List(list) => list.elements.iter().any(|element| reads(element, root)),
        // Rare enough to be taken for one that does.
        Expr::Map(_) | Expr::Struct(_) | Expr::Comprehension(_) => true,
        Expr::Literal(_) | Expr::Unspecified => false,
    }
}

fn check(expression: &IdedExpr) -> Result<(), String> {
    use cel::common::ast::EntryExpr;
    match &expression.expr {
        Expr::Literal(_) => Ok(()),
        Expr::Ident(name) if is_type(name) => Ok(()),
        Expr::Ident(name) => vocabulary::root(name).map(drop),
        Expr::Select(select) => match &select.operand.expr {
            Expr::Ident(root) => attribute(root, &select.field),
            _ => check(&select.operand),
        },
        Expr::Call(call) => {
            if let Some((Expr::Ident(root), field)) = plain::index(call) {
                return attribute(root, field);
            }
            check_call(call)?;
            call.target.iter().try_for_each(|target| check(target))?;
            call.args.iter().try_for_each(check)
        }
        Expr::List(list) => list.elements.iter().try_for_each(check),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => check(&entry.key).and_then(|()| check(&entry.value)),
            EntryExpr::StructField(field) => check(&field.value),
        }),
        Expr::Comprehension(_) => Err(
            "comprehensions (`all`, `exists`, `map`, `filter`, ...) are switched off, as in Envoy"
                .to_owned(),
        ),
        Expr::Struct(_) => Err("messages cannot be made here".to_owned()),
        Expr::Unspecified => Err("not an expression".to_owned()),
    }
}

fn attribute(root: &str, field: &str) -> Result<(), String> {
    vocabulary::root(root)?.attribute(field).map(drop)
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let root = Root::of(variable)?;
        Some(CowVal::owned(Object::Root(*self, root)))
    }
}

/// What expressions look into.
#[derive(Debug, Clone, Copy)]
enum Object<'a> {
    Root(Facts<'a>, Root),
    Headers(Fields<'a>),
    Metadata(&'a RequestContext),
}

impl<'a> Object<'a> {
    fn find(&self, key: &dyn Val) -> Option<Value<'a>> {
        let key = key.downcast_ref::<CelString<'_>>()?.inner();
        match self {
            Self::Root(facts, root) => facts.value(root.attribute(key).ok()?),
            Self::Headers(fields) => fields.get(key).map(Value::Text),
            Self::Metadata(_) => None,
        }
    }
}

impl<'a> Val for Object<'a> {
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

    fn as_sizer(&self) -> Option<&dyn Sizer> {
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
        let absent = || ExecutionError::NoSuchKey(Arc::new(name.unwrap_or_default().to_owned()));
        if let Self::Metadata(context) = self {
            let fields = name.and_then(|name| context.metadata(name));
            return fields
                .map(|fields| CowVal::from(from_struct(fields)))
                .ok_or_else(absent);
        }
        self.find(key).map(into_cel).ok_or_else(absent)
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

impl Sizer for Object<'_> {
    fn size(&self) -> CelInt {
        let size = match self {
            Self::Headers(fields) => fields.len(),
            Self::Root(..) | Self::Metadata(_) => 0,
        };
        CelInt::from(i64::try_from(size).unwrap_or(i64::MAX))
    }
}

fn into_cel<'b, 'v>(value: Value<'v>) -> CowVal<'b, 'v> {
    match value {
        Value::Null | Value::Map | Value::List | Value::Type => CowVal::owned(CelNull),
        Value::Bool(value) => CowVal::owned(CelBool::from(value)),
        Value::Int(value) => CowVal::owned(CelInt::from(value)),
        Value::Uint(value) => CowVal::owned(CelUInt::from(value)),
        Value::Double(value) => CowVal::owned(CelDouble::from(value)),
        Value::Text(Cow::Borrowed(value)) => CowVal::owned(CelString::from(value)),
        Value::Text(Cow::Owned(value)) => CowVal::owned(CelString::from(value)),
        Value::Bytes(value) => CowVal::owned(CelBytes::from(value.into_owned())),
        Value::Duration(value) => CowVal::owned(CelDuration::from(value)),
        Value::Time(value) => {
            let time: DateTime<FixedOffset> = DateTime::<Utc>::from(value).fixed_offset();
            CowVal::owned(CelTimestamp::from(time))
        }
        Value::Headers(fields) => CowVal::owned(Object::Headers(fields)),
        Value::Metadata(context) => CowVal::owned(Object::Metadata(context)),
    }
}

fn from_cel(value: &dyn Val) -> Option<Value<'static>> {
    let kind = value.get_type().kind();
    Some(match kind {
        Kind::NullType => Value::Null,
        Kind::Boolean => Value::Bool(*value.downcast_ref::<CelBool>()?.inner()),
        Kind::Int => Value::Int(*value.downcast_ref::<CelInt>()?.inner()),
        Kind::UInt => Value::Uint(*value.downcast_ref::<CelUInt>()?.inner()),
        Kind::Double => Value::Double(*value.downcast_ref::<CelDouble>()?.inner()),
        Kind::String => {
            let text = value.downcast_ref::<CelString<'_>>()?.inner();
            Value::Text(Cow::Owned(text.to_owned()))
        }
        Kind::Bytes => {
            let bytes = value.downcast_ref::<CelBytes<'_>>()?.inner();
            Value::Bytes(Cow::Owned(bytes.to_owned()))
        }
        Kind::Duration => Value::Duration(*value.downcast_ref::<CelDuration>()?.inner()),
        Kind::Timestamp => Value::Time((*value.downcast_ref::<CelTimestamp>()?.inner()).into()),
        Kind::List => Value::List,
        Kind::Map => Value::Map,
        Kind::Type => Value::Type,
        _ => return None,
    })
}

/// Metadata as CEL sees it.
fn from_struct(fields: prost_types::Struct) -> Box<dyn Val> {
    let entries: HashMap<CelMapKey<'static>, Box<dyn Val>> = fields
        .fields
        .into_iter()
        .map(|(name, value)| (CelMapKey::from(name), from_json(value)))
        .collect();
    Box::new(CelMap::from(entries))
}

fn from_json(value: prost_types::Value) -> Box<dyn Val> {
    match value.kind {
        None | Some(JsonKind::NullValue(_)) => Box::new(CelNull),
        Some(JsonKind::BoolValue(value)) => Box::new(CelBool::from(value)),
        Some(JsonKind::NumberValue(value)) => Box::new(CelDouble::from(value)),
        Some(JsonKind::StringValue(value)) => Box::new(CelString::from(value)),
        Some(JsonKind::StructValue(value)) => from_struct(value),
        Some(JsonKind::ListValue(list)) => {
            let values: Vec<Box<dyn Val>> = list.values.into_iter().map(from_json).collect();
            Box::new(CelList::from(values))
        }
    }
}
