//! Compiles `proto/**/*.proto` to Rust, without any program outside of Cargo.
//!
//! The files live under the names by which they import each other, so the
//! folder is the only include path.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Every file that is compiled; what they import comes along.
const FILES: [&str; 8] = [
    "envoy/service/auth/v3/external_auth.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/ext_proc/v3/external_processor.proto",
    "envoy/service/rate_limit_quota/v3/rlqs.proto",
    "envoy/service/ratelimit/v3/rls.proto",
    "google/rpc/status.proto",
    "opentelemetry/proto/collector/trace/v1/trace_service.proto",
    "ratelimit/config/ratelimit/v3/rls_conf.proto",
];

/// The resources that a control plane sends. They are read by their descriptors alone: no Rust is
/// made of them.
const RESOURCES: [&str; 18] = [
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/ext_proc/v3/ext_proc.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");

    let set = protox::compile(FILES, ["proto"])?;

    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .bytes(".")
        .btree_map(".")
        .compile_fds(set.clone())?;

    embed(set, "descriptors.binpb")?;
    embed(protox::compile(RESOURCES, ["proto"])?, "resources.binpb")
}

/// Writes a set that is embedded. It goes without comments and positions, which only the code
/// generator reads.
fn embed(mut set: FileDescriptorSet, name: &str) -> Result<(), Box<dyn Error>> {
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join(name), set.encode_to_vec())?;
    Ok(())
}
