//! From the text of the file to a [`Config`].

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::section::{BOOL, DURATION, Kind, LISTEN, PATH, SIZE, Section, TEXT, parsed};
use super::{
    AdminConfig, Compression, Config, ConfigError, ConsistencyMode, ConsulApi, ConsulDiscovery, DataDir, DataDirPurpose,
    K2vApiConfig, KubernetesDiscovery, Listen, Overrides, PeerAddress, Replication, Resolved, RpcConfig, S3ApiConfig,
    S3WebConfig, SecretFiles, SecretInput, SecretName, Warning,
};
use crate::names::Punycode;

const BLOCK_SIZE_DEFAULT: u64 = 1 << 20;
const BLOCK_RAM_BUFFER_DEFAULT: u64 = 256 << 20;
const INLINE_THRESHOLD_DEFAULT: u64 = 8192;
/// Rows travel whole, also in listings that skip their content.
const INLINE_THRESHOLD_MAX: u64 = 64 << 10;
const DB_ENGINE_DEFAULT: &str = "lmdb";
const BLOCK_RELEASE_DELAY_DEFAULT: Duration = Duration::from_secs(10 * 60);
const LMDB_MAP_SIZE_DEFAULT: u64 = if cfg!(target_pointer_width = "64") { 1 << 40 } else { 1 << 30 };

const ADDRESS: Kind<std::net::SocketAddr> =
    Kind { read: parsed, expected: "\"<ip>:<port>\", an IPv6 address in brackets: \"[::]:3901\"" };
const HOST_PORT: Kind<super::HostPort> = Kind { read: parsed, expected: "\"<ip or host name>:<port>\"" };
const PEER: Kind<PeerAddress> =
    Kind { read: parsed, expected: "\"<node id>@<ip or host name>:<port>\", as `garage node id` prints it" };
const FACTOR: Kind<u16> = Kind { read: factor, expected: "the number of copies, at least 1: 3 is usual, 1 for a single node" };
const MODE: Kind<ConsistencyMode> = Kind { read: mode, expected: "\"consistent\", \"degraded\" or \"dangerous\"" };
const LEGACY_MODE: Kind<Replication> = Kind { read: legacy_mode, expected: "replication_factor = 1, 2 or 3 instead" };
const COMPRESSION: Kind<Compression> = Kind { read: compression, expected: "a zstd level from -99 to 22, or \"none\"" };
const BANDWIDTH: Kind<NonZeroU64> =
    Kind { read: bandwidth, expected: "bytes a second above zero, such as \"20MB\"; without the key there is no limit" };
const BLOCK_SIZE: Kind<u64> = Kind { read: block_size, expected: "a size from \"1KiB\" to \"1GiB\"; \"1MiB\" is the default" };
const INLINE: Kind<u64> = Kind { read: inline_threshold, expected: "a size of at most \"64KiB\"; 8192 is the default" };
const DOMAIN: Kind<String> = Kind { read: domain, expected: "a domain such as \".s3.example.com\"" };
const CONSUL_API: Kind<ConsulApi> = Kind { read: consul_api, expected: "\"catalog\" or \"agent\"" };

fn factor(value: &Value) -> Option<u16> {
    u16::try_from(value.as_integer()?).ok().filter(|factor| *factor >= 1)
}

fn mode(value: &Value) -> Option<ConsistencyMode> {
    ConsistencyMode::named(value.as_str()?)
}

/// `replication_mode` of versions before 1.0.
fn legacy_mode(value: &Value) -> Option<Replication> {
    let (factor, consistency) = match value.as_str()? {
        "none" | "1" => (1, ConsistencyMode::Consistent),
        "2" => (2, ConsistencyMode::Consistent),
        "2-dangerous" => (2, ConsistencyMode::Dangerous),
        "3" => (3, ConsistencyMode::Consistent),
        "3-degraded" => (3, ConsistencyMode::Degraded),
        "3-dangerous" => (3, ConsistencyMode::Dangerous),
        _ => return None,
    };
    Some(Replication { factor, consistency })
}

fn compression(value: &Value) -> Option<Compression> {
    match value {
        Value::String(text) if text == "none" => Some(Compression::Off),
        Value::Integer(level) if (-99..=22).contains(level) => i32::try_from(*level).ok().map(Compression::Zstd),
        _ => None,
    }
}

fn block_size(value: &Value) -> Option<u64> {
    (SIZE.read)(value).filter(|size| (1 << 10..=1 << 30).contains(size))
}

fn bandwidth(value: &Value) -> Option<NonZeroU64> {
    (SIZE.read)(value).and_then(NonZeroU64::new)
}

fn inline_threshold(value: &Value) -> Option<u64> {
    (SIZE.read)(value).filter(|size| *size <= INLINE_THRESHOLD_MAX)
}

/// Domains are kept in lower case and with their leading dot, which may be left out in the file.
fn domain(value: &Value) -> Option<String> {
    let bare = value.as_str()?.trim_start_matches('.').to_ascii_lowercase();
    let fits = !bare.is_empty() && !bare.contains(['/', ':', ' ']);
    fits.then(|| format!(".{bare}"))
}

fn consul_api(value: &Value) -> Option<ConsulApi> {
    match value.as_str()? {
        "catalog" => Some(ConsulApi::Catalog),
        "agent" => Some(ConsulApi::Agent),
        _ => None,
    }
}

pub(super) fn resolve(text: &str, flags: &Overrides, environment: &Overrides) -> Result<Resolved, ConfigError> {
    let entries = text.parse::<Table>().map_err(|error| syntax_error(text, &error))?;
    let mut top = Section::new("", entries);
    let mut warnings = Vec::new();
    retire_old_keys(&mut top, &mut warnings);
    let metadata_dir = top.required("metadata_dir", &PATH, "metadata_dir = \"/var/lib/garage/meta\"")?;
    let secrets = Secrets { flags, environment };
    let allow_in_file = top.or("allow_world_readable_secrets", &BOOL, false)?;
    let config = Config {
        data_dirs: data_dirs(&mut top, &mut warnings)?,
        metadata_snapshots_dir: top.or("metadata_snapshots_dir", &PATH, metadata_dir.join("snapshots"))?,
        metadata_dir,
        metadata_auto_snapshot_interval: top.optional("metadata_auto_snapshot_interval", &INTERVAL)?,
        db_engine: top.or("db_engine", &TEXT, DB_ENGINE_DEFAULT.to_owned())?,
        lmdb_map_size: top.or("lmdb_map_size", &SIZE, LMDB_MAP_SIZE_DEFAULT)?,
        metadata_fsync: top.or("metadata_fsync", &BOOL, true)?,
        data_fsync: top.or("data_fsync", &BOOL, true)?,
        disable_scrub: top.or("disable_scrub", &BOOL, false)?,
        use_local_tz: top.or("use_local_tz", &BOOL, false)?,
        replication: replication(&mut top)?,
        block_release_delay: top.or("block_release_delay", &DURATION, BLOCK_RELEASE_DELAY_DEFAULT)?,
        block_size: top.or("block_size", &BLOCK_SIZE, BLOCK_SIZE_DEFAULT)?,
        inline_threshold: top.or("inline_threshold", &INLINE, INLINE_THRESHOLD_DEFAULT)?,
        block_ram_buffer_max: top.or("block_ram_buffer_max", &SIZE, BLOCK_RAM_BUFFER_DEFAULT)?,
        resync_bandwidth_limit: top.optional("resync_bandwidth_limit", &BANDWIDTH)?,
        compression: top.or("compression_level", &COMPRESSION, Compression::Zstd(1))?,
        punycode: if top.or("allow_punycode", &BOOL, false)? { Punycode::Allowed } else { Punycode::Refused },
        secret_files: secrets.files(allow_in_file),
        rpc: rpc(&mut top, &secrets)?,
        s3_api: s3_api(&mut top, &mut warnings)?,
        s3_web: s3_web(&mut top, &mut warnings)?,
        k2v_api: k2v_api(&mut top, &mut warnings)?,
        admin: admin(&mut top, &secrets, &mut warnings)?,
        consul_discovery: consul(&mut top, &mut warnings)?,
        kubernetes_discovery: kubernetes(&mut top, &mut warnings)?,
    };
    top.finish(&mut warnings);
    check_listeners(&config)?;
    Ok(Resolved { config, warnings })
}

/// The message without the text around it: that line may hold a secret.
fn syntax_error(text: &str, error: &toml::de::Error) -> ConfigError {
    let position = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..position].iter().filter(|byte| **byte == b'\n').count() + 1;
    // What the parser would have liked better is of no help where it is nothing.
    let message = error.message().trim_end_matches(", expected nothing").to_owned();
    ConfigError::Syntax { line, message }
}

/// The stronger levels, beside the file.
struct Secrets<'a> {
    flags: &'a Overrides,
    environment: &'a Overrides,
}

impl Secrets<'_> {
    fn choose(&self, name: SecretName, section: &mut Section, key: &str) -> Result<Option<super::SecretSource>, ConfigError> {
        let input = SecretInput { inline: section.secret(key)?, file: section.optional(&format!("{key}_file"), &PATH)? };
        name.choose(self.flags, self.environment, &input)
    }

    fn files(&self, allow_in_file: bool) -> SecretFiles {
        let in_file = if allow_in_file { SecretFiles::WorldReadable } else { SecretFiles::OwnerOnly };
        self.flags.secret_files.or(self.environment.secret_files).unwrap_or(in_file)
    }
}

fn retire_old_keys(top: &mut Section, warnings: &mut Vec<Warning>) {
    let sled = "sled is used as it comes; remove the line";
    let consul = "write it in a section [consul_discovery]";
    let kubernetes = "write it in a section [kubernetes_discovery]";
    let tls = "nodes authenticate each other with rpc_secret; remove the section";
    for (key, instead) in [
        ("sled_cache_capacity", sled),
        ("sled_flush_every_ms", sled),
        ("consul_host", consul),
        ("consul_service_name", consul),
        ("kubernetes_namespace", kubernetes),
        ("kubernetes_service_name", kubernetes),
        ("kubernetes_skip_crd", kubernetes),
        ("rpc_tls", tls),
    ] {
        top.removed(key, instead, warnings);
    }
}

fn data_dirs(top: &mut Section, warnings: &mut Vec<Warning>) -> Result<Vec<DataDir>, ConfigError> {
    let expected = "a path in quotes, or a list of { path = \"…\", capacity = \"…\" }";
    let dirs = match top.raw("data_dir") {
        None => {
            return Err(ConfigError::Missing { key: "data_dir".to_owned(), example: "data_dir = \"/var/lib/garage/data\"" });
        }
        Some(Value::String(path)) if !path.is_empty() => {
            vec![DataDir { path: PathBuf::from(path), purpose: DataDirPurpose::Writable { capacity_bytes: None } }]
        }
        Some(Value::Array(entries)) => {
            let mut dirs = Vec::new();
            for (index, entry) in entries.into_iter().enumerate() {
                let Value::Table(entry) = entry else { return Err(top.refuse("data_dir", &entry, expected)) };
                dirs.push(data_dir(Section::new(format!("data_dir[{index}]"), entry), warnings)?);
            }
            dirs
        }
        Some(other) => return Err(top.refuse("data_dir", &other, expected)),
    };
    if let Some((_, dir)) = dirs.iter().enumerate().find(|(index, dir)| dirs[..*index].iter().any(|other| other.path == dir.path))
    {
        return Err(ConfigError::DataDirTwice { path: dir.path.clone() });
    }
    if dirs.iter().all(|dir| dir.purpose == DataDirPurpose::ReadOnly) {
        return Err(ConfigError::NoWritableDataDir);
    }
    Ok(dirs)
}

fn data_dir(mut entry: Section, warnings: &mut Vec<Warning>) -> Result<DataDir, ConfigError> {
    let path = entry.required("path", &PATH, "path = \"/mnt/disk\"")?;
    let capacity = entry.optional("capacity", &SIZE)?;
    let read_only = entry.or("read_only", &BOOL, false)?;
    let capacity_key = entry.full_key("capacity");
    let read_only_key = entry.full_key("read_only");
    entry.finish(warnings);
    let purpose = match (capacity, read_only) {
        (Some(bytes), false) if bytes > 0 => DataDirPurpose::Writable { capacity_bytes: Some(bytes) },
        (Some(bytes), false) => {
            return Err(ConfigError::Value { key: capacity_key, found: bytes.to_string(), expected: "a size greater than 0" });
        }
        (None, true) => DataDirPurpose::ReadOnly,
        (Some(_), true) => {
            let instead = "keep `capacity` to write to the directory, `read_only` to empty it";
            return Err(ConfigError::Conflict { first: capacity_key, second: read_only_key, instead });
        }
        (None, false) => {
            return Err(ConfigError::Missing { key: capacity_key, example: "capacity = \"2T\", or read_only = true" });
        }
    };
    Ok(DataDir { path, purpose })
}

fn replication(top: &mut Section) -> Result<Replication, ConfigError> {
    let legacy = top.optional("replication_mode", &LEGACY_MODE)?;
    let factor = top.optional("replication_factor", &FACTOR)?;
    let consistency = top.optional("consistency_mode", &MODE)?;
    let conflict = |second: &str| {
        let instead = "remove replication_mode, which replication_factor and consistency_mode replace";
        Err(ConfigError::Conflict { first: "replication_mode".to_owned(), second: second.to_owned(), instead })
    };
    match (legacy, factor, consistency) {
        (Some(_), Some(_), _) => conflict("replication_factor"),
        (Some(_), None, Some(_)) => conflict("consistency_mode"),
        (Some(replication), None, None) => Ok(replication),
        (None, Some(factor), mode) => Ok(Replication { factor, consistency: mode.unwrap_or(ConsistencyMode::Consistent) }),
        (None, None, _) => Err(ConfigError::Missing {
            key: "replication_factor".to_owned(),
            example: "replication_factor = 3 (or 1 for a single node), the same on all nodes",
        }),
    }
}

fn rpc(top: &mut Section, secrets: &Secrets<'_>) -> Result<RpcConfig, ConfigError> {
    Ok(RpcConfig {
        secret: secrets.choose(SecretName::Rpc, top, "rpc_secret")?,
        bind_addr: top.required("rpc_bind_addr", &ADDRESS, "rpc_bind_addr = \"[::]:3901\"")?,
        bind_outgoing: top.or("rpc_bind_outgoing", &BOOL, false)?,
        public_addr: top.optional("rpc_public_addr", &HOST_PORT)?,
        public_addr_subnet: top.optional("rpc_public_addr_subnet", &SUBNET)?,
        bootstrap_peers: top.list("bootstrap_peers", &PEER)?,
        timeout: top.or("rpc_timeout_msec", &MILLISECONDS, Duration::from_secs(10))?,
        ping_timeout: top.or("rpc_ping_timeout_msec", &MILLISECONDS, Duration::from_secs(4))?,
    })
}

const INTERVAL: Kind<Duration> =
    Kind { read: interval, expected: "a duration of a minute or more, such as \"6h\" or \"1d 12h\"" };
const MILLISECONDS: Kind<Duration> = Kind { read: milliseconds, expected: "a number of milliseconds from 100 to 3600000" };
const SUBNET: Kind<super::Subnet> = Kind { read: parsed, expected: "a subnet such as \"10.0.0.0/8\" or \"fd00::/8\"" };

/// Copies of the metadata without a pause would leave no time for anything else.
fn interval(value: &Value) -> Option<Duration> {
    (DURATION.read)(value).filter(|interval| *interval >= Duration::from_secs(60))
}

/// At least long enough for one round trip, at most an hour.
fn milliseconds(value: &Value) -> Option<Duration> {
    let millis = u64::try_from(value.as_integer()?).ok()?;
    (100..=3_600_000).contains(&millis).then(|| Duration::from_millis(millis))
}

fn s3_api(top: &mut Section, warnings: &mut Vec<Warning>) -> Result<S3ApiConfig, ConfigError> {
    let example = "s3_region = \"garage\" in a section [s3_api]";
    let Some(mut section) = top.section("s3_api")? else {
        return Err(ConfigError::Missing { key: "s3_api.s3_region".to_owned(), example });
    };
    let config = S3ApiConfig {
        api_bind_addr: section.optional("api_bind_addr", &LISTEN)?,
        region: section.required("s3_region", &TEXT, example)?,
        region_any: section.or("s3_region_any", &BOOL, false)?,
        root_domain: section.optional("root_domain", &DOMAIN)?,
    };
    section.finish(warnings);
    Ok(config)
}

fn s3_web(top: &mut Section, warnings: &mut Vec<Warning>) -> Result<Option<S3WebConfig>, ConfigError> {
    let Some(mut section) = top.section("s3_web")? else { return Ok(None) };
    section.removed("index", "every bucket has its own index document", warnings);
    let config = S3WebConfig {
        bind_addr: section.required("bind_addr", &LISTEN, "bind_addr = \"[::]:3902\"")?,
        root_domain: section.required("root_domain", &DOMAIN, "root_domain = \".web.example.com\"")?,
        add_host_to_metrics: section.or("add_host_to_metrics", &BOOL, false)?,
    };
    section.finish(warnings);
    Ok(Some(config))
}

fn k2v_api(top: &mut Section, warnings: &mut Vec<Warning>) -> Result<Option<K2vApiConfig>, ConfigError> {
    let Some(mut section) = top.section("k2v_api")? else { return Ok(None) };
    let config = K2vApiConfig { api_bind_addr: section.required("api_bind_addr", &LISTEN, "api_bind_addr = \"[::]:3904\"")? };
    section.finish(warnings);
    Ok(Some(config))
}

fn admin(top: &mut Section, secrets: &Secrets<'_>, warnings: &mut Vec<Warning>) -> Result<AdminConfig, ConfigError> {
    // Flags and environment may give tokens even when the file has no such section.
    let mut section = top.section("admin")?.unwrap_or_else(|| Section::new("admin", Table::new()));
    let config = AdminConfig {
        api_bind_addr: section.optional("api_bind_addr", &LISTEN)?,
        admin_token: secrets.choose(SecretName::AdminToken, &mut section, "admin_token")?,
        metrics_token: secrets.choose(SecretName::MetricsToken, &mut section, "metrics_token")?,
        metrics_require_token: section.or("metrics_require_token", &BOOL, false)?,
        trace_sink: section.optional("trace_sink", &TEXT)?,
    };
    section.finish(warnings);
    Ok(config)
}

fn consul(top: &mut Section, warnings: &mut Vec<Warning>) -> Result<Option<ConsulDiscovery>, ConfigError> {
    let Some(mut section) = top.section("consul_discovery")? else { return Ok(None) };
    let client_cert = section.optional("client_cert", &PATH)?;
    let client_key = section.optional("client_key", &PATH)?;
    let example = "client_cert and client_key, both or neither";
    if client_cert.is_some() != client_key.is_some() {
        let missing = if client_cert.is_some() { "client_key" } else { "client_cert" };
        return Err(ConfigError::Missing { key: section.full_key(missing), example });
    }
    let mut meta = std::collections::BTreeMap::new();
    if let Some(mut table) = section.section("meta")? {
        for key in table.keys() {
            if let Some(value) = table.optional(&key, &TEXT)? {
                meta.insert(key, value);
            }
        }
    }
    let config = ConsulDiscovery {
        api: section.or("api", &CONSUL_API, ConsulApi::Catalog)?,
        consul_http_addr: section.required("consul_http_addr", &TEXT, "consul_http_addr = \"http://127.0.0.1:8500\"")?,
        service_name: section.required("service_name", &TEXT, "service_name = \"garage\"")?,
        ca_cert: section.optional("ca_cert", &PATH)?,
        client_cert,
        client_key,
        token: section.secret("token")?,
        tls_skip_verify: section.or("tls_skip_verify", &BOOL, false)?,
        tags: section.list("tags", &TEXT)?,
        meta,
    };
    section.finish(warnings);
    Ok(Some(config))
}

fn kubernetes(top: &mut Section, warnings: &mut Vec<Warning>) -> Result<Option<KubernetesDiscovery>, ConfigError> {
    let Some(mut section) = top.section("kubernetes_discovery")? else { return Ok(None) };
    let config = KubernetesDiscovery {
        namespace: section.required("namespace", &TEXT, "namespace = \"default\"")?,
        service_name: section.required("service_name", &TEXT, "service_name = \"garage\"")?,
        skip_crd: section.or("skip_crd", &BOOL, false)?,
    };
    section.finish(warnings);
    Ok(Some(config))
}

/// Two listeners on one address would make the second fail at start, with a less helpful message.
fn check_listeners(config: &Config) -> Result<(), ConfigError> {
    let rpc = Listen::Tcp(config.rpc.bind_addr);
    let listeners = [
        ("rpc_bind_addr", Some(&rpc)),
        ("s3_api.api_bind_addr", config.s3_api.api_bind_addr.as_ref()),
        ("s3_web.bind_addr", config.s3_web.as_ref().map(|web| &web.bind_addr)),
        ("admin.api_bind_addr", config.admin.api_bind_addr.as_ref()),
        ("k2v_api.api_bind_addr", config.k2v_api.as_ref().map(|k2v| &k2v.api_bind_addr)),
    ];
    for (index, (first, address)) in listeners.iter().enumerate() {
        let Some(address) = address else { continue };
        // Port 0 asks for any free port, so that two of them do not clash.
        if matches!(address, Listen::Tcp(address) if address.port() == 0) {
            continue;
        }
        if let Some((second, _)) = listeners[index + 1..].iter().find(|(_, other)| *other == Some(address)) {
            return Err(ConfigError::SameAddress { first, second, address: (*address).clone() });
        }
    }
    Ok(())
}
