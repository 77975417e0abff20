use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::{any, proptest};

use super::{
    Compression, Config, ConfigError, ConsistencyMode, DataDir, DataDirPurpose, HostPort, Listen, Overrides, PeerAddress,
    Replication, Resolved, SecretFiles, SecretInput, SecretSource, Warning, parse_rpc_secret,
};
use crate::Secret;
use crate::names::Punycode;
use crate::size::{parse_duration, parse_size};

const MINIMAL: &str = r#"
metadata_dir = "/m"
data_dir = "/d"
replication_factor = 3
rpc_bind_addr = "[::]:3901"
[s3_api]
s3_region = "garage"
"#;

fn resolve(text: &str) -> Result<Resolved, ConfigError> {
    Config::resolve(text, &Overrides::default(), &Overrides::default())
}

fn config(text: &str) -> Config {
    let resolved = resolve(text).unwrap();
    assert_eq!(resolved.warnings, []);
    resolved.config
}

/// The minimal file with lines of the top level added.
fn with(lines: &str) -> String {
    format!("{lines}\n{MINIMAL}")
}

fn error(text: &str) -> String {
    resolve(text).unwrap_err().to_string()
}

fn inline(text: &str) -> SecretInput {
    SecretInput { inline: Some(Secret::new(text)), file: None }
}

#[test]
fn a_minimal_file_gets_safe_defaults() {
    let config = config(MINIMAL);
    assert!(config.metadata_fsync && config.data_fsync);
    assert_eq!(config.block_size, 1 << 20);
    assert_eq!(config.inline_threshold, 8192);
    assert_eq!(config.block_ram_buffer_max, 256 << 20);
    assert_eq!(config.compression, Compression::Zstd(1));
    assert_eq!(config.metadata_snapshots_dir, PathBuf::from("/m/snapshots"));
    assert_eq!(config.replication, Replication { factor: 3, consistency: ConsistencyMode::Consistent });
    assert_eq!(config.punycode, Punycode::Refused);
    assert_eq!(config.secret_files, SecretFiles::OwnerOnly);
    assert!(!config.s3_api.region_any);
    assert_eq!((&config.s3_api.api_bind_addr, &config.s3_web, &config.k2v_api), (&None, &None, &None));
    assert_eq!(config.rpc.secret, None);
}

#[test]
fn a_single_node_file_with_sockets_and_secret_files_is_read() {
    let config = config(
        r#"
metadata_dir = "/var/lib/garage/meta"
data_dir = "/var/lib/garage/data"
replication_factor = 1
rpc_bind_addr = "[::]:3901"
rpc_public_addr = "127.0.0.1:3901"
rpc_secret_file = "/run/secrets/rpc"

[s3_api]
s3_region = "garage"
api_bind_addr = "/run/garage/s3.sock"

[admin]
api_bind_addr = "127.0.0.1:3903"
admin_token = "x"
"#,
    );
    assert_eq!(config.rpc.secret, Some(SecretSource::File("/run/secrets/rpc".into())));
    assert_eq!(config.s3_api.api_bind_addr, Some(Listen::Unix("/run/garage/s3.sock".into())));
    assert_eq!(config.admin.api_bind_addr, Some(Listen::Tcp("127.0.0.1:3903".parse().unwrap())));
    assert_eq!(config.admin.admin_token, Some(SecretSource::Inline(Secret::new("x"))));
    assert_eq!(config.rpc.public_addr, Some(HostPort { host: "127.0.0.1".into(), port: 3901 }));
}

#[test]
fn every_documented_key_is_known() {
    let peer = format!("{}@host.example:3901", "ab".repeat(32));
    let text = format!(
        r#"
metadata_dir = "/m"
data_dir = [ {{ path = "/mnt/a", capacity = "2T" }}, {{ path = "/mnt/old", read_only = true }} ]
replication_factor = 3
consistency_mode = "degraded"
metadata_snapshots_dir = "/snap"
metadata_auto_snapshot_interval = "6h"
db_engine = "lmdb"
metadata_fsync = false
data_fsync = false
disable_scrub = true
use_local_tz = true
block_size = "10M"
inline_threshold = "4KiB"
block_ram_buffer_max = "512MiB"
lmdb_map_size = "2T"
resync_bandwidth_limit = "20MB"
compression_level = "none"
rpc_secret = "s"
rpc_bind_addr = "0.0.0.0:3901"
rpc_bind_outgoing = true
rpc_public_addr = "node.example:3901"
rpc_public_addr_subnet = "10.0.0.0/8"
bootstrap_peers = ["{peer}"]
rpc_timeout_msec = 30000
rpc_ping_timeout_msec = 2500
allow_world_readable_secrets = true
allow_punycode = true
[s3_api]
api_bind_addr = "[::]:3900"
s3_region = "eu"
s3_region_any = true
root_domain = "S3.example"
[s3_web]
bind_addr = "[::]:3902"
root_domain = ".web.example"
add_host_to_metrics = true
[k2v_api]
api_bind_addr = "[::]:3904"
[admin]
api_bind_addr = "/run/admin.sock"
admin_token_file = "/a"
metrics_token = "m"
metrics_require_token = true
trace_sink = "http://localhost:4317"
[consul_discovery]
api = "agent"
consul_http_addr = "http://127.0.0.1:8500"
service_name = "garage"
ca_cert = "/ca"
client_cert = "/cert"
client_key = "/key"
token = "t"
tls_skip_verify = true
tags = ["a"]
meta = {{ a = "b" }}
[kubernetes_discovery]
namespace = "default"
service_name = "garage"
skip_crd = true
"#
    );
    let config = config(&text);
    assert_eq!(config.block_size, 10_000_000);
    assert_eq!(config.metadata_auto_snapshot_interval, Some(Duration::from_secs(6 * 3600)));
    assert_eq!(config.compression, Compression::Off);
    assert_eq!(config.rpc.bootstrap_peers[0].to_string(), peer);
    assert_eq!(config.rpc.public_addr_subnet.map(|subnet| subnet.to_string()).as_deref(), Some("10.0.0.0/8"));
    assert_eq!((config.rpc.timeout, config.rpc.ping_timeout), (Duration::from_secs(30), Duration::from_millis(2500)));
    assert_eq!(config.s3_api.root_domain.as_deref(), Some(".s3.example"), "with its dot, in lower case");
    assert_eq!(config.consul_discovery.unwrap().meta["a"], "b");
    let writable =
        DataDir { path: "/mnt/a".into(), purpose: DataDirPurpose::Writable { capacity_bytes: Some(2_000_000_000_000) } };
    assert_eq!(config.data_dirs, [writable, DataDir { path: "/mnt/old".into(), purpose: DataDirPurpose::ReadOnly }]);
}

#[test]
fn unknown_and_retired_keys_are_warnings() {
    let text = format!(
        "sled_cache_capacity = 1\nmetadata_fsink = true\n{MINIMAL}region = \"x\"\n[s3_web]\nindex = \"i\"\nbind_addr = \"[::]:1\"\nroot_domain = \".w\"\n[rpc_tls]\nca = \"x\"\n[nonsense]\na = 1\n"
    );
    let warnings = resolve(&text).unwrap().warnings;
    let mut keys: Vec<&str> = warnings
        .iter()
        .map(|warning| match warning {
            Warning::UnknownKey { key } | Warning::Removed { key, .. } => key.as_str(),
        })
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, ["metadata_fsink", "nonsense", "rpc_tls", "s3_api.region", "s3_web.index", "sled_cache_capacity"]);
    assert!(warnings.iter().any(|warning| warning.to_string().starts_with("`metadata_fsink` is not a known setting")));
}

#[test]
fn the_old_replication_mode_is_translated_and_stands_alone() {
    let old = |value: &str| MINIMAL.replace("replication_factor = 3", &format!("replication_mode = {value:?}"));
    let mode = |value: &str| config(&old(value)).replication;
    assert_eq!(mode("none"), Replication { factor: 1, consistency: ConsistencyMode::Consistent });
    assert_eq!(mode("2-dangerous"), Replication { factor: 2, consistency: ConsistencyMode::Dangerous });
    assert_eq!(mode("3-degraded"), Replication { factor: 3, consistency: ConsistencyMode::Degraded });
    assert!(error(&old("4")).starts_with("`replication_mode` cannot be \"4\": write replication_factor"));
    assert!(error(&with("replication_mode = \"3\"")).contains("cannot be given together"));
    assert!(error(&format!("consistency_mode = \"degraded\"\n{}", old("3"))).contains("`consistency_mode`"));
    assert!(error(&MINIMAL.replace("replication_factor = 3", "")).starts_with("`replication_factor` is missing"));
}

#[test]
fn errors_name_the_key_and_what_to_write() {
    let cases = [
        (MINIMAL.replace("metadata_dir = \"/m\"", ""), "`metadata_dir` is missing: add metadata_dir ="),
        (MINIMAL.replace("data_dir = \"/d\"", ""), "`data_dir` is missing"),
        (MINIMAL.replace("\"/d\"", "[]"), "no entry of `data_dir` is writable"),
        (MINIMAL.replace("\"/d\"", "[{ path = \"/d\" }]"), "`data_dir[0].capacity` is missing"),
        (
            MINIMAL.replace("\"/d\"", "[{ path = \"/d\", capacity = 1 }, { path = \"/d\", capacity = 1 }]"),
            "`data_dir` names /d twice",
        ),
        (MINIMAL.replace("\"/d\"", "[{ path = \"/d\", capacity = 1, read_only = true }]"), "`data_dir[0].capacity` and"),
        (MINIMAL.replace("s3_region = \"garage\"", ""), "`s3_api.s3_region` is missing"),
        (MINIMAL.replace("[::]:3901", "3901"), "`rpc_bind_addr` cannot be \"3901\": write \"<ip>:<port>\""),
        (with("block_size = \"1 parsec\""), "`block_size` cannot be \"1 parsec\": write a size"),
        (with("block_size = 1"), "`block_size` cannot be 1:"),
        (with("inline_threshold = \"1M\""), "`inline_threshold`"),
        (with("compression_level = 23"), "`compression_level` cannot be 23"),
        (with("metadata_fsync = \"yes\""), "`metadata_fsync` cannot be \"yes\": write true or false"),
        (with("bootstrap_peers = [\"a@b:1\"]"), "`bootstrap_peers` cannot be \"a@b:1\": write \"<node id>@"),
        (with("rpc_public_addr_subnet = \"10.0.0.0/33\""), "`rpc_public_addr_subnet`"),
        (with("rpc_timeout_msec = 5"), "`rpc_timeout_msec` cannot be 5: write a number of milliseconds"),
        (with("rpc_ping_timeout_msec = \"2s\""), "`rpc_ping_timeout_msec`"),
        (format!("{MINIMAL}api_bind_addr = \"[::]:3901\""), "`rpc_bind_addr` and `s3_api.api_bind_addr` are both [::]:3901"),
        (format!("{MINIMAL}api_bind_addr = \":3900\""), "`s3_api.api_bind_addr` cannot be \":3900\""),
        (format!("{MINIMAL}[s3_web]\nbind_addr = \"[::]:1\""), "`s3_web.root_domain` is missing"),
        (with("replication_factor = "), "line 1 is not TOML"),
    ];
    for (text, start) in cases {
        let error = error(&text);
        assert!(error.starts_with(start), "{error}\nshould start with\n{start}");
    }
}

#[test]
fn secrets_come_from_flags_then_the_environment_then_the_file() {
    let environment = |pairs: &'static [(&str, &str)]| {
        let find = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Overrides::from_environment(find)
    };
    let set = environment(&[("GARAGE_RPC_SECRET_FILE", "/env"), ("GARAGE_ADMIN_TOKEN", "token"), ("GARAGE_METRICS_TOKEN", "")])
        .unwrap();
    let text = with("rpc_secret = \"file\"");
    let of = |flags: &Overrides, environment: &Overrides| Config::resolve(&text, flags, environment).unwrap().config;
    let none = Overrides::default();
    let flags = Overrides { rpc_secret: inline("flag"), ..Overrides::default() };
    assert_eq!(of(&none, &none).rpc.secret, Some(SecretSource::Inline(Secret::new("file"))));
    assert_eq!(of(&none, &set).rpc.secret, Some(SecretSource::File("/env".into())));
    assert_eq!(of(&flags, &set).rpc.secret, Some(SecretSource::Inline(Secret::new("flag"))));
    assert_eq!(of(&none, &set).admin.admin_token, Some(SecretSource::Inline(Secret::new("token"))), "without a section [admin]");
    assert_eq!(of(&none, &set).admin.metrics_token, None, "an empty variable is no secret");

    let both = environment(&[("GARAGE_RPC_SECRET_FILE", "/env"), ("GARAGE_RPC_SECRET", "x")]).unwrap();
    let conflict = Config::resolve(&text, &none, &both).unwrap_err().to_string();
    assert!(conflict.starts_with("`GARAGE_RPC_SECRET` and `GARAGE_RPC_SECRET_FILE` cannot"), "{conflict}");
    assert!(error(&with("rpc_secret = \"a\"\nrpc_secret_file = \"/b\"")).starts_with("`rpc_secret` and `rpc_secret_file`"));

    let allow = environment(&[("GARAGE_ALLOW_WORLD_READABLE_SECRETS", "1")]).unwrap();
    assert_eq!(of(&none, &allow).secret_files, SecretFiles::WorldReadable);
    assert!(environment(&[("GARAGE_ALLOW_WORLD_READABLE_SECRETS", "maybe")]).is_err());
}

#[test]
fn snapshots_are_at_least_a_minute_apart() {
    let text = |interval: &str| with(&format!("metadata_auto_snapshot_interval = \"{interval}\""));
    assert_eq!(config(&text("1m")).metadata_auto_snapshot_interval, Some(Duration::from_secs(60)));
    for interval in ["0s", "59s", "soon", "-1h"] {
        assert!(error(&text(interval)).starts_with("`metadata_auto_snapshot_interval` cannot be"), "{interval}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_configuration_panic_or_tell_its_secret(
        text in any::<String>(),
        key in proptest::sample::select(KEYS),
        value in "[-0-9a-zA-Z\"\\[\\]{}=,.:/@ ]{0,30}",
    ) {
        drop(resolve(&text));
        let whole = format!("rpc_secret = \"squeamish\"\n{key} = {value}\n{MINIMAL}\n{key} = {value}\n");
        if let Err(error) = resolve(&whole) {
            assert!(!error.to_string().contains("squeamish"), "{error}");
        }
    }

    #[test]
    fn no_text_makes_addresses_sizes_or_durations_panic(text in "[-0-9a-zA-Z\\[\\]:.@/ ]{0,40}") {
        if let Ok(address) = text.parse::<HostPort>() {
            assert_eq!(address.to_string().parse::<HostPort>(), Ok(address));
        }
        drop((text.parse::<PeerAddress>(), text.parse::<super::Subnet>(), parse_size(&text), parse_duration(&text)));
    }
}

/// Of each kind of value one.
const KEYS: &[&str] = &[
    "metadata_dir",
    "data_dir",
    "replication_factor",
    "replication_mode",
    "consistency_mode",
    "compression_level",
    "block_size",
    "lmdb_map_size",
    "metadata_auto_snapshot_interval",
    "rpc_bind_addr",
    "rpc_public_addr",
    "rpc_public_addr_subnet",
    "rpc_timeout_msec",
    "bootstrap_peers",
    "data_fsync",
    "resync_bandwidth_limit",
    "s3_api.root_domain",
    "consul_discovery",
    "rpc_secret_file",
];

#[test]
fn no_error_shows_a_secret() {
    for text in ["rpc_secret = 424242", "rpc_secret = \"424242\" 424242", "rpc_secret = 424242x"] {
        let error = error(&with(text));
        assert!(!error.contains("424242"), "{error}");
    }
    assert!(!format!("{:?}", config(&with("rpc_secret = \"424242\""))).contains("424242"));
}

#[test]
fn the_rpc_secret_is_64_hexadecimal_digits() {
    assert_eq!(parse_rpc_secret(&Secret::new(format!("{}\n", "0f".repeat(32)))), Ok([15; 32]));
    assert_eq!(parse_rpc_secret(&Secret::new("0f")), Err(ConfigError::RpcSecret));
}

#[test]
fn peers_and_hosts_are_written_as_they_are_read() {
    for text in ["10.0.0.1:3901", "[fd00::1]:3901", "node-1.example:1"] {
        assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
    }
    for text in ["", "host", "host:", ":3901", "fd00::1:3901", "host:99999", "[x]:1", "a@b:1"] {
        assert!(text.parse::<HostPort>().is_err(), "{text}");
    }
    assert!(format!("{}@host:1", "00".repeat(32)).parse::<PeerAddress>().is_ok());
    assert!("00@host:1".parse::<PeerAddress>().is_err());
}
