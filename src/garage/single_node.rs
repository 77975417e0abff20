//! `garage server --single-node` without a configuration: what is written into its folder, and what is printed at the start.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use garage_node::single::Credentials;
use garage_types::Secret;
use garage_types::config::{Config, SecretSource};

use crate::args::ServerArgs;
use crate::error::CliError;
use crate::settings::made_secret_path;

pub const DIR_DEFAULT: &str = "./garage-data";
const CONFIG_FILE: &str = "garage.toml";
const S3_BIND_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3900);
const RPC_BIND_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3901);

/// What a configuration for one machine is made of.
pub struct NewConfig<'a> {
    /// Absolute, so that the file means the same from every working directory.
    pub dir: &'a Path,
    pub rpc_secret: &'a Secret,
    pub rpc_bind: SocketAddr,
    pub s3_bind: SocketAddr,
}

/// The text of the configuration file.
///
/// # Errors
/// [`CliError::Usage`] for a folder whose name is not UTF-8, which TOML cannot hold.
pub fn configuration(new: &NewConfig<'_>) -> Result<String, CliError> {
    let quoted = |path: PathBuf| match path.to_str() {
        Some(text) => Ok(toml::Value::from(text).to_string()),
        None => Err(CliError::Usage(format!("{} is not UTF-8: choose another --dir", path.display()))),
    };
    let metadata = quoted(new.dir.join("meta"))?;
    let data = quoted(new.dir.join("data"))?;
    let NewConfig { rpc_secret, rpc_bind, s3_bind, .. } = new;
    let secret = rpc_secret.expose();
    Ok(format!(
        "# Made by `garage server --single-node`. This file holds a secret: keep it to yourself.\n\
         \n\
         metadata_dir = {metadata}\n\
         data_dir = {data}\n\
         # One copy of everything: a broken disk loses it.\n\
         replication_factor = 1\n\
         \n\
         rpc_bind_addr = \"{rpc_bind}\"\n\
         rpc_secret = \"{secret}\"\n\
         \n\
         [s3_api]\n\
         s3_region = \"garage\"\n\
         # Clients that insist on another region, such as us-east-1, are served as well.\n\
         s3_region_any = true\n\
         api_bind_addr = \"{s3_bind}\"\n\
         # A bucket is found at its name below this domain as well: http://BUCKET.localhost:3900/KEY.\n\
         root_domain = \".localhost\"\n"
    ))
}

/// The configuration file of a folder, made with all it needs if it is not there.
///
/// # Errors
/// [`CliError::File`], [`CliError::Terminal`].
pub fn prepare(server: &ServerArgs) -> Result<PathBuf, CliError> {
    let dir = server.dir.clone().unwrap_or_else(|| PathBuf::from(DIR_DEFAULT));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::File { action: "cannot make", path, source }
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed(&dir))?;
    let dir = dir.canonicalize().map_err(failed(&dir))?;
    let path = dir.join(CONFIG_FILE);
    let text = configuration(&NewConfig {
        dir: &dir,
        rpc_secret: &new_secret()?,
        rpc_bind: server.rpc_bind.unwrap_or(RPC_BIND_DEFAULT),
        s3_bind: server.s3_bind.unwrap_or(S3_BIND_DEFAULT),
    })?;
    match write_new(&path, &text) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
        written => written.map(|()| path.clone()).map_err(failed(&path)),
    }
}

fn new_secret() -> Result<Secret, CliError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(CliError::Random)?;
    Ok(Secret::new(hex::encode(secret)))
}

/// Makes the secret that a configuration written by somebody lacks, beside the metadata, where the command line finds it too.
///
/// # Errors
/// [`CliError::File`], [`CliError::Random`].
pub fn make_secret(config: &Config) -> Result<SecretSource, CliError> {
    let path = made_secret_path(config);
    let failed = |source| CliError::File { action: "cannot make", path: path.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.metadata_dir).map_err(failed)?;
    write_new(&path, new_secret()?.expose()).map_err(failed)?;
    Ok(SecretSource::File(path))
}

/// Writes a file that did not exist, for its owner only; complete or not at all.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    // A link fails where a rename would replace a file that appeared meanwhile.
    std::fs::hard_link(&unfinished, path)?;
    std::fs::remove_file(&unfinished)
}

/// What to tell whoever starts a single node.
pub struct Banner<'a> {
    pub config_path: &'a Path,
    /// As bound: `<ip>:<port>`, or the path of a socket.
    pub s3_address: Option<&'a str>,
    pub region: &'a str,
    pub credentials: Option<&'a Credentials>,
}

/// Endpoint and credentials, ready to paste. For standard output, never for the log.
pub fn banner(banner: &Banner<'_>) -> String {
    let tcp = banner.s3_address.and_then(|address| address.parse::<SocketAddr>().ok());
    let endpoint = match (tcp, banner.s3_address) {
        (Some(address), _) => format!("http://{}", reachable(address)),
        (None, Some(path)) => format!("unix socket {path}"),
        (None, None) => "none: [s3_api] has no api_bind_addr".to_owned(),
    };
    let region = banner.region;
    let mut text = format!(
        "\nGarage stores everything on this machine.\n\n  Configuration  {}\n  S3 endpoint    {endpoint}\n  Region         {region}\n",
        banner.config_path.display()
    );
    let Some(Credentials { bucket, key_id, secret }) = banner.credentials else {
        return text
            + "\nNext: garage bucket create NAME, garage key create NAME, garage bucket allow NAME --key NAME --read --write\n\n";
    };
    text += &format!("  Bucket         {bucket}\n  Key id         {key_id}\n  Secret key     {}\n", secret.expose());
    if tcp.is_some() {
        let (secret, region) = (for_shell(secret.expose()), for_shell(region));
        text += &format!(
            "\nPaste one of these to use it:\n\n\
             aws     export AWS_ACCESS_KEY_ID={key_id} AWS_SECRET_ACCESS_KEY={secret} AWS_DEFAULT_REGION={region} AWS_ENDPOINT_URL={endpoint}\n\
             \x20       aws s3 ls s3://{bucket}\n\
             mc      mc alias set garage {endpoint} {key_id} {secret} --api S3v4\n\
             \x20       mc ls garage/{bucket}\n\
             rclone  rclone config create garage s3 provider=Other access_key_id={key_id} secret_access_key={secret} region={region} endpoint={endpoint} force_path_style=true\n\
             \x20       rclone ls garage:{bucket}\n"
        );
    }
    text + "\n"
}

/// A word as a shell reads it back: as it is where no character means anything to a shell.
fn for_shell(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A listener on all addresses is reached on the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr =
            if address.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    address
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use garage_types::config::{Config, Listen, Overrides, RpcConfig, SecretFiles, SecretSource};
    use garage_types::{KeyId, Secret};

    use garage_node::single::Credentials;

    use super::{Banner, NewConfig, RPC_BIND_DEFAULT, S3_BIND_DEFAULT, banner, configuration, for_shell, make_secret, prepare};
    use crate::args::ServerArgs;
    use crate::settings::{rpc_secret, secret_source};

    fn server(dir: &Path) -> ServerArgs {
        ServerArgs { single_node: true, default_bucket: false, dir: Some(dir.to_owned()), s3_bind: None, rpc_bind: None }
    }

    #[test]
    fn the_configuration_that_is_written_can_be_read_without_a_warning() {
        let secret = Secret::new("0f".repeat(32));
        let dir = Path::new("/with \"quotes\" and \\");
        let new = NewConfig { dir, rpc_secret: &secret, rpc_bind: RPC_BIND_DEFAULT, s3_bind: S3_BIND_DEFAULT };
        let text = configuration(&new).unwrap();
        let resolved = Config::resolve(&text, &Overrides::default(), &Overrides::default()).unwrap();
        assert_eq!(resolved.warnings, []);
        let config = resolved.config;
        assert_eq!(config.metadata_dir, dir.join("meta"));
        assert_eq!(config.replication.factor, 1);
        assert_eq!(config.rpc.secret, Some(SecretSource::Inline(secret)));
        assert_eq!(config.s3_api.api_bind_addr, Some(Listen::Tcp("127.0.0.1:3900".parse().unwrap())));
        assert!(config.s3_api.region_any);
    }

    #[test]
    fn a_folder_gets_one_configuration_and_keeps_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("new");
        let path = prepare(&server(&dir)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(prepare(&server(&dir)).unwrap(), path);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "the secret stays");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_configuration_without_a_secret_gets_one_that_the_command_line_finds() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("new");
        let new =
            NewConfig { dir: &dir, rpc_secret: &Secret::new("unused"), rpc_bind: RPC_BIND_DEFAULT, s3_bind: S3_BIND_DEFAULT };
        let text = configuration(&new).unwrap().replace("rpc_secret = \"unused\"", "");
        let config = Config::resolve(&text, &Overrides::default(), &Overrides::default()).unwrap().config;
        assert_eq!(secret_source(&config), None);
        let made = make_secret(&config).unwrap();
        assert_eq!(secret_source(&config), Some(made.clone()));
        rpc_secret(&made, SecretFiles::OwnerOnly).unwrap();
        assert!(make_secret(&config).is_err(), "a secret is never replaced");
        let given =
            Config { rpc: RpcConfig { secret: Some(SecretSource::Inline(Secret::new("x"))), ..config.rpc.clone() }, ..config };
        assert_eq!(secret_source(&given), Some(SecretSource::Inline(Secret::new("x"))), "what is configured is stronger");
    }

    #[test]
    fn lines_to_paste_hold_any_secret() {
        assert_eq!(for_shell("ab+/cd=="), "ab+/cd==");
        assert_eq!(for_shell(r#"p@ss w"ord$HOME'q"#), r#"'p@ss w"ord$HOME'\''q'"#);
        assert_eq!(for_shell(""), "''");
        let access =
            Credentials { bucket: "photos".into(), key_id: KeyId::parse("minioadmin").unwrap(), secret: Secret::new("a b") };
        let config_path = Path::new("/g/garage.toml");
        let text =
            banner(&Banner { config_path, s3_address: Some("0.0.0.0:3900"), region: "my region", credentials: Some(&access) });
        assert!(text.contains("  Secret key     a b\n"), "{text}");
        assert!(text.contains("AWS_SECRET_ACCESS_KEY='a b' AWS_DEFAULT_REGION='my region' "), "{text}");
    }

    #[test]
    fn the_banner_has_lines_to_paste() {
        let access = Credentials {
            bucket: "photos".into(),
            key_id: KeyId::parse("GK0123456789abcdef01234567").unwrap(),
            secret: Secret::new("s3cr3t"),
        };
        let config_path = Path::new("/g/garage.toml");
        let of = |credentials| banner(&Banner { config_path, s3_address: Some("0.0.0.0:3900"), region: "garage", credentials });
        let text = of(Some(&access));
        for part in [
            "S3 endpoint    http://127.0.0.1:3900\n",
            "Secret key     s3cr3t\n",
            "AWS_ENDPOINT_URL=http://127.0.0.1:3900\n        aws s3 ls s3://photos\n",
            "mc alias set garage http://127.0.0.1:3900 GK0123456789abcdef01234567 s3cr3t --api S3v4\n",
            "rclone ls garage:photos\n",
        ] {
            assert!(text.contains(part), "{text}\nshould have\n{part}");
        }
        assert!(of(None).contains("garage bucket create NAME"));
    }
}
