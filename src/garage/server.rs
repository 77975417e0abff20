//! `garage server`: the configuration, the log, the signals; the node itself is made elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use garage_admin::error::with_causes;
use garage_admin::nodes::{Facts, FreeSpace, HostNames, Space, Spaces};
use garage_admin::snapshots::TakeSnapshot;
use garage_admin::{AdminService, register};
use garage_node::capabilities::BlockingThreads;
use garage_node::daemon::{self, DaemonOptions, Ready, Setup};
use garage_node::engine;
use garage_node::node::Node;
use garage_node::single::DefaultBucket;
use garage_node::snapshots::Snapshots;
use garage_rpc::endpoint::Router;
use garage_types::config::{Config, DataDirPurpose, Listen};
use garage_types::names::Punycode;
use garage_types::offload::offload;
use garage_types::{BucketName, KeyId, Secret};
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Global, ServerArgs};
use crate::error::CliError;
use crate::output::print;
use crate::settings::{self, Loaded};
use crate::single_node::{self, Banner};

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// [`CliError`]: it could not start, or not stop well.
pub async fn run(global: &Global, args: &ServerArgs) -> Result<(), CliError> {
    let Loaded { path, config, warnings } = settings::load(global, configuration(global, args)?)?;
    tracing::info!(path = %path.display(), "configuration read");
    for warning in &warnings {
        tracing::warn!("{}: {warning}", path.display());
    }
    for key in absent(&config) {
        tracing::warn!("{}: `{key}` has no effect: it is for something that this version does not have", path.display());
    }
    for (flag, key) in made_earlier(&config, args) {
        tracing::warn!("{flag} has no effect: {} was made earlier; change `{key}` there", path.display());
    }
    settings::check_own_secrets(global, &path, &config)?;
    for variable in ["GARAGE_LOG_TO_SYSLOG", "GARAGE_LOG_TO_JOURNALD"] {
        if std::env::var_os(variable).is_some() {
            tracing::warn!("{variable} has no effect in this version: the log goes to standard error");
        }
    }
    let source = match settings::secret_source(&config) {
        None if args.single_node => single_node::make_secret(&config)?,
        source => source.ok_or(CliError::NoRpcSecret)?,
    };
    let rpc_secret = settings::rpc_secret(&source, config.secret_files)?;
    let facts = facts(&config);
    let is_single = args.single_node;
    let setup = setup(args, &config)?;
    let options = DaemonOptions { config, rpc_secret, setup, descriptors: raise_descriptor_limit() };
    let mut stop = stop_signals()?;
    let ready = |ready: &Ready| {
        tracing::info!(node = %ready.node, "ready");
        if is_single {
            let banner = Banner {
                config_path: &path,
                s3_address: ready.s3_address.as_deref(),
                region: &ready.region,
                credentials: ready.credentials.as_ref(),
            };
            // Standard output, and not the log: whoever asked for a key needs to see it once.
            if let Err(error) = print(&single_node::banner(&banner)) {
                tracing::warn!(error = %with_causes(&error), "cannot show how to connect");
            }
        }
    };
    let told_to_stop = async || {
        let name = stop.received().await;
        tracing::info!(signal = name, "told to stop");
    };
    daemon::run(options, |node, snapshots| admin(node, snapshots, facts), ready, told_to_stop).await.map_err(CliError::Daemon)
}

/// The configuration file: for a single node in a directory of its own, or that nobody configured, one is made.
fn configuration(global: &Global, args: &ServerArgs) -> Result<PathBuf, CliError> {
    match settings::locate(global) {
        Ok(path) if args.dir.is_none() => Ok(path),
        Err(nowhere) if !args.single_node => Err(nowhere),
        _ => single_node::prepare(args),
    }
}

/// What is configured and does nothing, although somebody may count on it.
fn absent(config: &Config) -> Vec<&'static str> {
    let keys = [
        ("s3_web.bind_addr", config.s3_web.is_some()),
        ("k2v_api.api_bind_addr", config.k2v_api.is_some()),
        ("admin.api_bind_addr", config.admin.api_bind_addr.is_some()),
        ("admin.trace_sink", config.admin.trace_sink.is_some()),
        ("consul_discovery", config.consul_discovery.is_some()),
        ("kubernetes_discovery", config.kubernetes_discovery.is_some()),
    ];
    keys.into_iter().filter(|(_key, configured)| *configured).map(|(key, _configured)| key).collect()
}

/// Flags that count when the configuration is made, and say something else than the one there is.
fn made_earlier(config: &Config, args: &ServerArgs) -> Vec<(&'static str, &'static str)> {
    let s3_differs = |address| config.s3_api.api_bind_addr != Some(Listen::Tcp(address));
    let flags = [
        (("--s3-bind", "s3_api.api_bind_addr"), args.s3_bind.is_some_and(s3_differs)),
        (("--rpc-bind", "rpc_bind_addr"), args.rpc_bind.is_some_and(|address| config.rpc.bind_addr != address)),
    ];
    flags.into_iter().filter(|(_flag, differs)| *differs).map(|(flag, _differs)| flag).collect()
}

fn setup(args: &ServerArgs, config: &Config) -> Result<Setup, CliError> {
    if !args.single_node {
        return Ok(Setup::ByOperator);
    }
    let variable = |name: &str| settings::variable(name).filter(|value| !value.is_empty());
    let default_bucket = if args.default_bucket { Some(default_bucket(variable, config.punycode)?) } else { None };
    Ok(Setup::SingleNode { default_bucket })
}

/// What the environment says about the key and the bucket to begin with.
fn default_bucket(variable: impl Fn(&str) -> Option<String>, punycode: Punycode) -> Result<DefaultBucket, CliError> {
    let key_id = variable("GARAGE_DEFAULT_ACCESS_KEY").map(|id| KeyId::parse(&id)).transpose();
    let key_id = key_id.map_err(|error| CliError::Usage(format!("GARAGE_DEFAULT_ACCESS_KEY: {error}")))?;
    let bucket = variable("GARAGE_DEFAULT_BUCKET").map(|name| BucketName::parse(&name, punycode)).transpose();
    let bucket = bucket.map_err(|error| CliError::Usage(format!("GARAGE_DEFAULT_BUCKET: {error}")))?;
    Ok(DefaultBucket { key_id, secret: variable("GARAGE_DEFAULT_SECRET_KEY").map(Secret::new), bucket })
}

/// More than any node needs; some systems allow no unlimited number.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// Raises the number of files and sockets this process may have open as far as it may; returns that number.
fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let (current, wanted) =
        (limit.current.unwrap_or(DESCRIPTORS_MAX), limit.maximum.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX));
    if current >= wanted {
        return current;
    }
    match rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, current, "cannot raise the limit of open files: fewer clients can be connected");
            current
        }
    }
}

/// The signals that end the daemon, listened to from before it starts.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// A file has reached the limit of the process (`ulimit -f`): that is the error of the write, and no reason to die.
    _file_too_large: Signal,
}

fn stop_signals() -> Result<StopSignals, CliError> {
    let listen = |kind| signal(kind).map_err(|source| CliError::Terminal { action: "listen for signals", source });
    Ok(StopSignals {
        interrupt: listen(SignalKind::interrupt())?,
        terminate: listen(SignalKind::terminate())?,
        hangup: listen(SignalKind::hangup())?,
        _file_too_large: listen(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
    })
}

impl StopSignals {
    async fn received(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                // The terminal is gone, or somebody expects what other daemons do: neither is a reason to stop.
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP has no effect: the configuration is read at the start only, and the log is not a file");
                }
            }
        }
    }
}

fn facts(config: &Config) -> Facts {
    Facts {
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: engine::BUILT_IN.iter().map(|name| (*name).to_owned()).collect(),
        rust_version: env!("GARAGE_RUSTC_VERSION").to_owned(),
        db_engine: config.db_engine.clone(),
        space: Arc::new(FileSystems {
            metadata: config.metadata_dir.clone(),
            data: config
                .data_dirs
                .iter()
                .filter(|dir| dir.purpose != DataDirPurpose::ReadOnly)
                .map(|dir| dir.path.clone())
                .collect(),
        }),
    }
}

/// The file systems of a node's directories.
#[derive(Clone)]
struct FileSystems {
    metadata: PathBuf,
    /// Those that are written to.
    data: Vec<PathBuf>,
}

/// The device of a file system, and its space; `None` when it does not tell.
fn space_at(path: &PathBuf) -> Option<(u64, Space)> {
    let device = || std::fs::metadata(path).map(|found| found.dev());
    let answer = rustix::fs::statvfs(path).map_err(io::Error::from).and_then(|found| Ok((device()?, found)));
    let answer = answer.inspect_err(|error| tracing::debug!(%error, path = %path.display(), "cannot measure free space"));
    let (device, found) = answer.ok()?;
    Some((device, Space { available: found.f_bavail * found.f_frsize, total: found.f_blocks * found.f_frsize }))
}

/// The space of several directories, each device counted once; `None` when one does not tell.
fn together(spaces: impl Iterator<Item = Option<(u64, Space)>>) -> Option<Space> {
    let by_device = spaces.collect::<Option<BTreeMap<u64, Space>>>()?;
    by_device.into_values().reduce(|sum, space| Space {
        available: sum.available.saturating_add(space.available),
        total: sum.total.saturating_add(space.total),
    })
}

impl FileSystems {
    fn spaces(&self) -> Spaces {
        let metadata = space_at(&self.metadata).map(|(_device, space)| space);
        Spaces { data: together(self.data.iter().map(space_at)), metadata }
    }
}

impl FreeSpace for FileSystems {
    fn measure(&self) -> BoxFuture<'static, Spaces> {
        let file_systems = self.clone();
        // A file system in the network may take its time.
        let measured = offload(&BlockingThreads::of_current_runtime(), move || file_systems.spaces());
        Box::pin(async move { measured.await.unwrap_or_default() })
    }
}

/// What operators may ask of the node.
fn admin(node: &Node, snapshots: &Snapshots, facts: Facts) -> Router {
    let snapshots = Arc::new(SnapshotsOf(snapshots.clone()));
    register(
        Router::builder(),
        AdminService { garage: node.garage.clone(), node: facts, snapshots, host_names: HostNames::default() },
    )
    .build()
}

/// The node's snapshots, for operators.
struct SnapshotsOf(Snapshots);

impl TakeSnapshot for SnapshotsOf {
    fn take(&self) -> BoxFuture<'static, Result<(), String>> {
        let snapshots = self.0.clone();
        Box::pin(async move { snapshots.take().await.map(|_path| ()).map_err(|error| with_causes(&error)) })
    }
}

#[cfg(test)]
mod tests {
    use garage_types::BucketName;
    use garage_types::config::{Config, Overrides};
    use garage_types::names::Punycode;

    use garage_admin::nodes::Space;

    use super::{absent, default_bucket, made_earlier, together};
    use crate::args::ServerArgs;

    #[test]
    fn the_environment_names_key_and_bucket() {
        let with = |variable: &'static str, value: &'static str| {
            default_bucket(move |name| (name == variable).then(|| value.to_owned()), Punycode::Refused)
        };
        let given = with("GARAGE_DEFAULT_BUCKET", "photos").unwrap();
        assert_eq!((given.bucket.as_ref().map(BucketName::as_str), given.key_id, given.secret), (Some("photos"), None, None));
        for variable in ["GARAGE_DEFAULT_BUCKET", "GARAGE_DEFAULT_ACCESS_KEY"] {
            let error = with(variable, "Not / OK").unwrap_err();
            assert!(error.to_string().starts_with(variable), "{error}");
        }
    }

    #[test]
    fn directories_on_one_file_system_have_its_space_once() {
        let space = |available| Space { available, total: 10 };
        let sum = |spaces: &[Option<(u64, Space)>]| together(spaces.iter().copied());
        assert_eq!(
            sum(&[Some((1, space(5))), Some((1, space(5))), Some((2, space(3)))]),
            Some(Space { available: 8, total: 20 })
        );
        assert_eq!(sum(&[Some((1, space(5))), None]), None);
    }

    #[test]
    fn what_is_configured_and_absent_is_named() {
        let text = "metadata_dir = \"/m\"\ndata_dir = \"/d\"\nreplication_factor = 1\nrpc_bind_addr = \"[::]:1\"\n[s3_api]\ns3_region = \"g\"\n[admin]\napi_bind_addr = \"[::]:2\"\n[kubernetes_discovery]\nnamespace = \"n\"\nservice_name = \"s\"";
        let config = Config::resolve(text, &Overrides::default(), &Overrides::default()).unwrap().config;
        assert_eq!(absent(&config), ["admin.api_bind_addr", "kubernetes_discovery"]);
    }

    #[test]
    fn flags_that_differ_from_a_configuration_made_earlier_are_named() {
        let text = "metadata_dir = \"/m\"\ndata_dir = \"/d\"\nreplication_factor = 1\nrpc_bind_addr = \"[::]:1\"\n[s3_api]\ns3_region = \"g\"\napi_bind_addr = \"[::]:2\"";
        let config = Config::resolve(text, &Overrides::default(), &Overrides::default()).unwrap().config;
        let args = |s3: &str, rpc: &str| ServerArgs {
            single_node: true,
            default_bucket: false,
            dir: None,
            s3_bind: Some(s3.parse().unwrap()),
            rpc_bind: Some(rpc.parse().unwrap()),
        };
        assert_eq!(made_earlier(&config, &args("[::]:2", "[::]:1")), []);
        assert_eq!(made_earlier(&config, &args("[::]:3", "[::]:1")), [("--s3-bind", "s3_api.api_bind_addr")]);
        assert_eq!(made_earlier(&config, &args("[::]:2", "[::1]:1")), [("--rpc-bind", "rpc_bind_addr")]);
    }
}
