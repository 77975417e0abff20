//! What a node alone needs besides its configuration: a layout of one, and if asked for a key and a bucket to begin with.

use garage_model::key::Permissions;
use garage_model::keys::KeyChange;
use garage_model::{Garage, ModelError};
use garage_rpc::layout::{LayoutError, LayoutManager, NodeRole};
use garage_types::{BucketName, KeyId, NodeId, Secret};

/// Zone of a node that was not given one.
const ZONE: &str = "dc1";

/// The key and the bucket to begin with; what is not given is generated or has a default.
#[derive(Clone, Debug, Default)]
pub struct DefaultBucket {
    pub key_id: Option<KeyId>,
    pub secret: Option<Secret>,
    pub bucket: Option<BucketName>,
}

/// Access to the store for who has just started it.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub key_id: KeyId,
    pub secret: Secret,
    pub bucket: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SingleError {
    #[error("the layout of one node cannot be made")]
    Layout(#[from] LayoutError),
    #[error("the default bucket cannot be made")]
    Model(#[from] ModelError),
    #[error(
        "access key {key_id} exists with another secret: take GARAGE_DEFAULT_SECRET_KEY away, or choose another GARAGE_DEFAULT_ACCESS_KEY"
    )]
    OtherSecret { key_id: KeyId },
}

/// The name of the key that is made here; by it a later start finds it again.
const KEY_NAME: &str = "default";
/// The bucket's name unless another is given.
const BUCKET: &str = "default";

/// Makes this node the whole cluster, unless a layout exists.
///
/// # Errors
/// [`SingleError::Layout`].
pub async fn ensure_layout(layout: &LayoutManager, node: NodeId, capacity_bytes: u64) -> Result<(), SingleError> {
    if !layout.current().is_empty() {
        return Ok(());
    }
    let role = NodeRole { zone: ZONE.to_owned(), capacity: Some(capacity_bytes), tags: Vec::new() };
    layout.stage_role(node, role).await?;
    layout.apply(1).await?;
    tracing::info!(%node, zone = ZONE, capacity_bytes, "made a layout of this node alone");
    Ok(())
}

/// Makes the key and the bucket that are missing, with all permissions.
///
/// # Errors
/// [`SingleError`].
pub async fn ensure_bucket(garage: &Garage, wanted: DefaultBucket) -> Result<Credentials, SingleError> {
    let DefaultBucket { key_id, secret, bucket } = wanted;
    let key = match key_id {
        Some(id) => match garage.key(&id).await {
            Ok(key) => key,
            Err(ModelError::NoSuchAccessKey(_)) => {
                let secret = secret.clone().unwrap_or_else(|| Secret::new(hex::encode(garage.random().bytes32())));
                garage.import_key(id, secret, KEY_NAME).await?
            }
            Err(error) => return Err(error.into()),
        },
        None => match garage.keys().await?.into_iter().find(|key| key.state.name.get() == KEY_NAME) {
            Some(key) => key,
            None => match secret.clone() {
                Some(secret) => garage.import_key(KeyId::generate(&**garage.random()), secret, KEY_NAME).await?,
                None => garage.create_key(KEY_NAME, None).await?,
            },
        },
    };
    if secret.is_some_and(|secret| secret != key.state.secret) {
        return Err(SingleError::OtherSecret { key_id: key.id });
    }
    if !*key.state.may_create_buckets.get() {
        garage.change_key(&key.id, KeyChange { may_create_buckets: Some(true), ..KeyChange::default() }).await?;
    }
    let name = match bucket {
        Some(name) => name,
        None => BucketName::parse(BUCKET, garage.punycode()).map_err(ModelError::from)?,
    };
    let id = match garage.resolve_bucket(Some(&key.id), name.as_str()).await {
        Ok(bucket) => bucket.id,
        Err(ModelError::NoSuchBucket(_)) => garage.create_bucket(name.as_str()).await?,
        Err(error) => return Err(error.into()),
    };
    if key.state.permissions(&id) != Permissions::ALL {
        garage.set_permissions(&key.id, id, Permissions::ALL).await?;
    }
    Ok(Credentials { key_id: key.id, secret: key.state.secret, bucket: name.to_string() })
}
