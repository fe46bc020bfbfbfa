//! What conditions and policies decide on: the request, and who it comes from.

use std::fmt;

use super::{check::Check, identity::Caller, metadata::Fetched};

/// A check with its caller known. All that is read of the request is read through the check.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) check: &'a Check<'a>,
    pub(super) caller: &'a Caller,
    /// The name of the source that vouches for the caller; `none` for nobody.
    pub(super) source: &'a str,
    /// What was looked up about the request.
    pub(super) metadata: &'a Fetched,
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Facts")
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::Arc;

    use serde_json::json;

    use super::Facts;
    use crate::policy::{
        check::Check,
        explain::Trail,
        identity::{Caller, Identity},
        metadata::Fetched,
        path::Reading,
    };

    /// Facts of a request of `alice` for `/a b/c`.
    pub(in crate::policy) fn with_facts<T>(look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let request = http::Request::get("http://h/a%20b/c").body(()).unwrap();
        let view = crate::testing::view(&request);
        let check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        let caller = Caller::Known(Arc::new(Identity {
            source: 0,
            claims: json!({ "sub": "alice", "roles": ["user", "admin"], "exp": 1 }),
            until: None,
        }));
        look(&Facts {
            check: &check,
            caller: &caller,
            source: "users",
            metadata: &Fetched::default(),
        })
    }
}
