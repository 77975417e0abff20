//! Finding the configuration, and reading what it refers to.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use garage_types::config::{
    Config, ConfigError, HostPort, Overrides, PeerAddress, Resolved, SecretFiles, SecretInput, SecretName, SecretSource, Warning,
    parse_rpc_secret,
};
use garage_types::{NodeId, Secret};

use crate::args::Global;
use crate::error::CliError;

/// Where the configuration is looked for when nobody says where it is.
pub const DEFAULT_PATHS: [&str; 2] = ["/etc/garage.toml", "./garage-data/garage.toml"];

/// Name of the file with the node's id, in the metadata directory.
const NODE_ID_FILE: &str = "node_key.pub";

/// A configuration that was found and read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub config: Config,
    pub warnings: Vec<Warning>,
}

/// Finds the configuration file: the one named, else the first default that exists.
///
/// # Errors
/// [`CliError::NoConfiguration`].
pub fn locate(global: &Global) -> Result<PathBuf, CliError> {
    if let Some(path) = &global.config {
        return Ok(path.clone());
    }
    let defaults = DEFAULT_PATHS.map(PathBuf::from);
    match defaults.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.clone()),
        None => Err(CliError::NoConfiguration { looked_at: defaults.to_vec() }),
    }
}

/// A variable of the environment. One in no known encoding is not passed over: its value is refused where it is used.
pub fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// What the environment says about secrets.
///
/// # Errors
/// [`CliError::Overrides`].
pub fn environment() -> Result<Overrides, CliError> {
    Overrides::from_environment(variable).map_err(CliError::Overrides)
}

/// Reads a configuration file.
///
/// # Errors
/// [`CliError::File`], [`CliError::Configuration`].
pub fn load(global: &Global, path: PathBuf) -> Result<Loaded, CliError> {
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(CliError::File { action: "cannot read", path, source }),
    };
    match Config::resolve(&text, &global.overrides(), &environment()?) {
        Ok(Resolved { config, warnings }) => Ok(Loaded { path, config, warnings }),
        Err(source) => Err(CliError::Configuration { line: line_of_error(&text, &source), path, source }),
    }
}

/// The line that an error is about, from 1 on. An error of the syntax says its own.
fn line_of_error(text: &str, error: &ConfigError) -> Option<usize> {
    match error {
        ConfigError::Value { key, .. } => line_of(text, key),
        ConfigError::Conflict { second, .. } => line_of(text, second),
        ConfigError::SameAddress { second, .. } => line_of(text, second),
        ConfigError::DataDirTwice { .. } | ConfigError::NoWritableDataDir => line_of(text, "data_dir"),
        ConfigError::Syntax { .. } | ConfigError::Missing { .. } | ConfigError::RpcSecret => None,
    }
}

/// Where a key is set: `key`, `section.key`, or `list[0].key`, which is found with its list.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let whole = key.split_once('[').map_or(key, |(list, _entry)| list);
    let (wanted_section, wanted) = whole.rsplit_once('.').unwrap_or(("", whole));
    let mut section = "";
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_start_matches('[').split(']').next().unwrap_or("").trim();
        } else if section == wanted_section && line.split_once('=').is_some_and(|(name, _value)| name.trim() == wanted) {
            return Some(index + 1);
        }
    }
    None
}

/// Looks who else can read what the daemon alone should: refuses a node key, and warns of a configuration with a secret in it, which
/// older manuals have everybody write.
///
/// # Errors
/// [`CliError::ReadableSecret`], [`CliError::File`].
pub fn check_own_secrets(global: &Global, path: &Path, config: &Config) -> Result<(), CliError> {
    if config.secret_files == SecretFiles::WorldReadable {
        return Ok(());
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::File { action: "cannot look at", path, source }
    };
    let key = config.metadata_dir.join(garage_node::state::NODE_KEY);
    match std::fs::metadata(&key) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&key)(error)),
        Ok(found) => owner_only(&key, &found)?,
    }
    let elsewhere = [global.overrides().rpc_secret, environment()?.rpc_secret];
    let is_in_file = elsewhere.iter().all(|input| *input == SecretInput::default())
        && matches!(config.rpc.secret, Some(SecretSource::Inline(_)));
    let mode = std::fs::metadata(path).map_err(failed(path))?.permissions().mode() & 0o777;
    if is_in_file && mode & 0o004 != 0 {
        let path = path.display();
        tracing::warn!(
            "{path} holds the RPC secret and everybody can read it (mode {mode:03o}): run `chmod 640 {path}` or stricter"
        );
    }
    Ok(())
}

/// # Errors
/// [`CliError::ReadableSecret`].
fn owner_only(path: &Path, found: &std::fs::Metadata) -> Result<(), CliError> {
    match found.permissions().mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(CliError::ReadableSecret { path: path.to_owned(), mode }),
        _ => Ok(()),
    }
}

/// Reads a secret, and the file it is in if there is one. Whitespace around it is no part of it.
///
/// # Errors
/// [`CliError::File`], [`CliError::ReadableSecret`].
pub fn read_secret(source: &SecretSource, files: SecretFiles) -> Result<Secret, CliError> {
    let path = match source {
        SecretSource::Inline(secret) => return Ok(Secret::new(secret.expose().trim())),
        SecretSource::File(path) => path,
    };
    let failed = |source: io::Error| CliError::File { action: "cannot read the secret in", path: path.clone(), source };
    // The file that is checked is the one that is read.
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if files == SecretFiles::OwnerOnly {
        owner_only(path, &file.metadata().map_err(failed)?)?;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(Secret::new(text.trim()))
}

/// This node's id, as its daemon wrote it.
///
/// # Errors
/// [`CliError::NoNodeKey`], [`CliError::NodeKey`].
pub fn node_id(metadata_dir: &Path) -> Result<NodeId, CliError> {
    let path = metadata_dir.join(NODE_ID_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => parse_node_id(&bytes).ok_or(CliError::NodeKey { path }),
        Err(source) => Err(CliError::NoNodeKey { path, source }),
    }
}

/// The id as 32 bytes or as 64 hexadecimal digits.
fn parse_node_id(bytes: &[u8]) -> Option<NodeId> {
    NodeId::from_slice(bytes).or_else(|| std::str::from_utf8(bytes).ok()?.trim().parse().ok())
}

/// How the command line reaches a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub daemon: PeerAddress,
    pub secret: [u8; 32],
}

/// The daemon to talk to: the one named, else the one that the configuration describes. With both peer and secret given, no
/// configuration is needed.
///
/// # Errors
/// Those of reading the configuration, the secret and the node's id.
pub fn target(global: &Global) -> Result<Target, CliError> {
    let overrides = (global.overrides(), environment()?);
    let given = SecretName::Rpc.choose(&overrides.0, &overrides.1, &SecretInput::default()).map_err(CliError::Overrides)?;
    if let (Some(daemon), Some(source)) = (&global.rpc_host, &given) {
        let files = overrides.0.secret_files.or(overrides.1.secret_files).unwrap_or(SecretFiles::OwnerOnly);
        return Ok(Target { daemon: daemon.clone(), secret: rpc_secret(source, files)? });
    }
    let config = load(global, locate(global)?)?.config;
    let secret = rpc_secret(&secret_source(&config).ok_or(CliError::NoRpcSecret)?, config.secret_files)?;
    let daemon = match &global.rpc_host {
        Some(daemon) => daemon.clone(),
        None => PeerAddress { node: node_id(&config.metadata_dir)?, address: own_address(&config) },
    };
    Ok(Target { daemon, secret })
}

/// The RPC secret.
///
/// # Errors
/// Those of [`read_secret`]; [`CliError::RpcSecret`].
pub fn rpc_secret(source: &SecretSource, files: SecretFiles) -> Result<[u8; 32], CliError> {
    parse_rpc_secret(&read_secret(source, files)?).map_err(CliError::RpcSecret)
}

/// Where the RPC secret is: where configuration, environment or flags say, else where `--single-node` left the one it made.
pub fn secret_source(config: &Config) -> Option<SecretSource> {
    let made = || Some(made_secret_path(config)).filter(|path| path.exists()).map(SecretSource::File);
    config.rpc.secret.clone().or_else(made)
}

/// The file that `--single-node` makes for a configuration without a secret.
pub fn made_secret_path(config: &Config) -> PathBuf {
    config.metadata_dir.join("rpc_secret")
}

/// Where this machine's own daemon answers: at its public address, else where it listens, on the loopback interface if it listens
/// on all.
fn own_address(config: &Config) -> HostPort {
    if let Some(address) = &config.rpc.public_addr {
        return address.clone();
    }
    let bind = config.rpc.bind_addr;
    let host = match bind.ip() {
        ip if !ip.is_unspecified() => ip.to_string(),
        std::net::IpAddr::V4(_) => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(_) => "::1".to_owned(),
    };
    HostPort { host, port: bind.port() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use garage_types::config::{Config, Overrides, SecretFiles, SecretSource};
    use garage_types::{NodeId, Secret};

    use clap::Parser;

    use super::{check_own_secrets, line_of, load, node_id, own_address, parse_node_id, read_secret};
    use crate::args::Cli;
    use crate::error::CliError;

    fn config(lines: &str) -> Config {
        let text = format!(
            "metadata_dir = \"/m\"\ndata_dir = \"/d\"\nreplication_factor = 1\n{lines}\n[s3_api]\ns3_region = \"garage\""
        );
        Config::resolve(&text, &Overrides::default(), &Overrides::default()).unwrap().config
    }

    #[test]
    fn the_own_daemon_is_reached_at_its_public_or_loopback_address() {
        let address = |lines: &str| own_address(&config(lines)).to_string();
        assert_eq!(address("rpc_bind_addr = \"[::]:3901\""), "[::1]:3901");
        assert_eq!(address("rpc_bind_addr = \"0.0.0.0:3902\""), "127.0.0.1:3902");
        assert_eq!(address("rpc_bind_addr = \"10.0.0.1:3901\""), "10.0.0.1:3901");
        assert_eq!(address("rpc_bind_addr = \"[::]:3901\"\nrpc_public_addr = \"node.example:4000\""), "node.example:4000");
    }

    #[test]
    fn secret_files_must_belong_to_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, " abc\n").unwrap();
        let source = SecretSource::File(path.clone());
        let read_with_mode = |mode, files| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_secret(&source, files)
        };
        assert_eq!(read_with_mode(0o600, SecretFiles::OwnerOnly).unwrap(), Secret::new("abc"));
        let error = read_with_mode(0o640, SecretFiles::OwnerOnly).unwrap_err();
        assert!(matches!(&error, CliError::ReadableSecret { mode: 0o640, .. }));
        assert!(error.to_string().contains("chmod 600") && !error.to_string().contains("abc"));
        assert_eq!(read_with_mode(0o644, SecretFiles::WorldReadable).unwrap(), Secret::new("abc"));
        assert!(matches!(
            read_secret(&SecretSource::File(dir.path().join("none")), SecretFiles::OwnerOnly),
            Err(CliError::File { .. })
        ));
    }

    #[test]
    fn node_key_that_others_can_read_stops_the_daemon_unless_that_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("node_key");
        let file = dir.path().join("garage.toml");
        std::fs::write(&file, "").unwrap();
        let Cli { global, .. } = Cli::try_parse_from(["garage", "status"]).unwrap();
        let config = Config { metadata_dir: dir.path().to_owned(), ..config("rpc_bind_addr = \"[::]:3901\"") };
        check_own_secrets(&global, &file, &config).unwrap(); // There is no key yet.
        std::fs::write(&key, "secret").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        check_own_secrets(&global, &file, &config).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = check_own_secrets(&global, &file, &config).unwrap_err();
        assert!(matches!(error, CliError::ReadableSecret { mode: 0o644, .. }), "{error}");
        let allowed = Config { secret_files: SecretFiles::WorldReadable, ..config };
        check_own_secrets(&global, &file, &allowed).unwrap();
    }

    #[test]
    fn an_error_in_the_configuration_names_its_line() {
        let text = "metadata_dir = \"/m\"\n# block_size = 1\n block_size= \"10Q\"\ndata_dir = [\n { path = \"/x\" },\n]\n[s3_api]\ns3_region = \"g\"\n";
        assert_eq!(line_of(text, "block_size"), Some(3));
        assert_eq!(line_of(text, "s3_api.s3_region"), Some(8));
        assert_eq!(line_of(text, "data_dir[0].capacity"), Some(4));
        assert_eq!(line_of(text, "s3_region"), None, "that key is in no section");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("garage.toml");
        let whole = "metadata_dir = \"/m\"\ndata_dir = \"/d\"\nreplication_factor = 1\nrpc_bind_addr = \"x\"\n";
        std::fs::write(&path, whole).unwrap();
        let Cli { global, .. } = Cli::try_parse_from(["garage", "status"]).unwrap();
        let error = load(&global, path.clone()).unwrap_err();
        assert_eq!(error.to_string(), format!("configuration file {}, line 4", path.display()));
        std::fs::write(&path, "metadata_dir = \"/m\"\ndata_dir = = 1\n").unwrap();
        let error = load(&global, path.clone()).unwrap_err();
        let said = garage_admin::error::with_causes(&error);
        assert_eq!(said, format!("configuration file {}: line 2 is not TOML: extra `=`", path.display()));
    }

    #[test]
    fn node_ids_are_read_as_bytes_or_digits() {
        let id = NodeId::from_bytes([7; 32]);
        assert_eq!(parse_node_id(&[7; 32]), Some(id));
        assert_eq!(parse_node_id(format!("{id}\n").as_bytes()), Some(id));
        assert_eq!(parse_node_id(b"short"), None);
        let dir = tempfile::tempdir().unwrap();
        assert!(node_id(dir.path()).unwrap_err().to_string().contains("appears when the daemon starts for the first time"));
    }
}
