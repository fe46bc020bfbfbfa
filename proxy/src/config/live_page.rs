//! `live_page`, as written.

use attache_service::{config::Located, config_struct};

config_struct! {
    /// The live page of the admin page, which shows the last requests to who watches.
    pub struct LivePage {
        /// More headers whose values are not shown, beside `authorization`, `cookie`,
        /// `proxy-authorization`, `set-cookie` and `x-api-key`.
        pub mask_headers: Vec<Located<String>>,
        /// Those of these headers whose values are shown all the same.
        pub show_headers: Vec<Located<String>>,
    }
}
