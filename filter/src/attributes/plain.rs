//! Expressions that only name an attribute or a header: by far the most, and read without CEL.

use cel::{
    IdedExpr,
    common::ast::{CallExpr, Expr, LiteralValue, operators},
};

use super::{
    facts::{Facts, Fields, Value},
    vocabulary::{Attribute, Root},
};

/// `request.path`, `request.headers['x-a']`, `request.headers.referer`.
#[derive(Debug, Clone)]
pub(super) enum Plain {
    Attribute(Attribute),
    RequestHeader(String),
    ResponseHeader(String),
}

impl Plain {
    /// The attribute or header that `expression` is, if it is just that.
    pub(super) fn of(expression: &IdedExpr) -> Option<Self> {
        let (object, name) = member(&expression.expr)?;
        if let Expr::Ident(root) = object {
            return Root::of(root)?.attribute(name).ok().map(Self::Attribute);
        }
        let (Expr::Ident(root), "headers") = member(object)? else {
            return None;
        };
        match Root::of(root)? {
            Root::Request => Some(Self::RequestHeader(name.to_owned())),
            Root::Response => Some(Self::ResponseHeader(name.to_owned())),
            _ => None,
        }
    }

    pub(super) fn value<'a>(&self, facts: &Facts<'a>) -> Option<Value<'a>> {
        let text = |fields: Fields<'a>, name: &str| fields.get(name).map(Value::Text);
        match self {
            Self::Attribute(attribute) => facts.value(*attribute),
            Self::RequestHeader(name) => text(facts.request_headers(), name),
            Self::ResponseHeader(name) => text(facts.response_headers(), name),
        }
    }

    /// Whether it is of the request's head.
    pub(super) fn reads_request(&self) -> bool {
        use Attribute as A;
        match self {
            Self::RequestHeader(_) => true,
            Self::ResponseHeader(_) => false,
            Self::Attribute(attribute) => matches!(
                attribute,
                A::RequestPath
                    | A::RequestUrlPath
                    | A::RequestQuery
                    | A::RequestHost
                    | A::RequestScheme
                    | A::RequestMethod
                    | A::RequestHeaders
                    | A::RequestReferer
                    | A::RequestUserAgent
                    | A::RequestId
                    | A::RequestSize
                    | A::RequestTotalSize
            ),
        }
    }
}

/// `object.name` or `object['name']`.
fn member(expression: &Expr) -> Option<(&Expr, &str)> {
    match expression {
        Expr::Select(select) if !select.test => Some((&select.operand.expr, &select.field)),
        Expr::Call(call) => index(call),
        _ => None,
    }
}

/// `object['name']`.
pub(super) fn index(call: &CallExpr) -> Option<(&Expr, &str)> {
    let [object, name] = call.args.as_slice() else {
        return None;
    };
    match &name.expr {
        Expr::Literal(LiteralValue::String(name)) if call.func_name == operators::INDEX => {
            Some((&object.expr, name.inner()))
        }
        _ => None,
    }
}
