//! Policies that rules hand the decision to.

use std::{path::PathBuf, time::Duration};

use attache_service::{
    config::{Located, Size},
    config_enum, config_oneof, config_struct,
    fetch::Remote,
};

config_struct! {
    /// A policy that rules with `action: ask` hand the decision to. Without any rules, the only
    /// policy is asked about every request.
    pub struct PolicySource {
        /// Its name in rules, metrics and logs.
        pub name: Located<String>,
        /// How long it may think about one request; then there is no decision. Default 100 ms.
        pub time_limit: Option<Located<Duration>>,
        /// A policy that is to replace this one: asked too, never obeyed.
        pub candidate: Option<Located<Candidate>>,
    }
    oneof {
        /// The language of the policy, and where it is.
        pub engine: PolicyEngine,
    }
}

config_oneof! {
    /// A policy's language.
    pub enum PolicyEngine {
        /// Rego, the language of Open Policy Agent.
        Rego(Rego) = "rego",
        /// Rego compiled to WebAssembly by `opa build -t wasm`.
        Wasm(Wasm) = "wasm",
    }
}

config_struct! {
    /// A policy in Rego. All that is named is loaded together.
    pub struct Rego {
        /// `.rego` files, and folders that are searched for them.
        pub files: Vec<Located<PathBuf>>,
        /// The text of a module.
        pub inline: Option<Located<String>>,
        /// JSON or YAML files with the data that the policy sees as `data`.
        pub data: Vec<Located<PathBuf>>,
        /// An OPA bundle with modules and data, instead of files.
        pub bundle: Option<Located<Bundle>>,
        /// The rule that decides. Default `data.envoy.authz.allow`.
        pub query: Option<Located<String>>,
    }
}

config_struct! {
    /// A policy in WebAssembly.
    pub struct Wasm {
        /// A `policy.wasm`.
        pub file: Option<Located<PathBuf>>,
        /// A JSON or YAML file with the data that the policy sees as `data`.
        pub data: Option<Located<PathBuf>>,
        /// An OPA bundle with a `policy.wasm` and data.
        pub bundle: Option<Located<Bundle>>,
        /// The entrypoint that decides. Default `envoy/authz/allow`.
        pub entrypoint: Option<Located<String>>,
    }
}

config_struct! {
    /// An OPA bundle: a `.tar.gz` as `opa build` makes it.
    pub struct Bundle {
        /// Whose signature it must have. Default: none is asked for, and one that is there is not
        /// looked at.
        pub signature: Option<Located<Signature>>,
        /// For `url`: how often it is asked for anew. Default 60 s.
        pub refresh: Option<Located<Duration>>,
        /// The largest bundle, packed; unpacked it may be ten times as large. Default 32 MiB.
        pub max_size: Option<Size>,
    }
    oneof {
        /// Where it is.
        pub place: BundlePlace,
    }
}

config_oneof! {
    /// Where a bundle is.
    pub enum BundlePlace {
        /// A file, loaded anew when it changes.
        File(Located<PathBuf>) = "file",
        /// An `http://` or `https://` address, or an HTTP service. Asked with the entity tag of
        /// what it gave last.
        Url(Remote) = "url",
    }
}

config_struct! {
    /// Who must have signed a bundle, as `opa sign` does.
    pub struct Signature {
        /// The keys, one of which must have signed it.
        pub keys: Vec<Located<BundleKey>>,
        /// The scope that the signature must be for. Default: any.
        pub scope: Option<String>,
    }
}

config_struct! {
    /// A key that signs bundles.
    pub struct BundleKey {
        /// Its name in signatures (`kid` or `keyid`). Default: it is tried for all of them.
        pub id: Option<String>,
        /// What it signs with.
        pub algorithm: SignatureAlgorithm,
        /// The file with the public key (PEM), or with the secret of `HS256`.
        pub key_file: Located<PathBuf>,
    }
}

config_enum! {
    /// Algorithms of signatures.
    pub enum SignatureAlgorithm {
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// RSA (PKCS #1) with SHA-256.
        Rs256 = "RS256",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
    }
}

config_struct! {
    /// A policy that is asked too, after the answer, so that it can be compared.
    pub struct Candidate {
        /// How many of a hundred requests it is asked about. Default 100.
        pub percent: Option<Located<u32>>,
    }
    oneof {
        /// The language of the policy, and where it is.
        pub engine: PolicyEngine,
    }
}
