//! From an object of the API to the record that etcd would hold for it.

use flannel_model::{
    EndpointSlice, IpSubnet, ServiceFieldError, ServiceKey, ServiceName, ServiceSpec, read_service,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::Resource;

/// Label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Annotation with the time of the change that a slice carries (k8s.io/api/core/v1/annotation_key_constants.go).
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Label of a Node with its zone, and the one from before Kubernetes 1.17.
const ZONE_LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];
/// The autoscaler puts this taint on a node that it is about to delete.
const DOOMED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// Longest excerpt of what is refused, in characters.
const EXCERPT: usize = 60;

/// Namespace (empty for objects of the cluster) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectName {
    /// Namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// One object, as far as a node needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which.
    pub name: ObjectName,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// When it was made, in seconds since 1970; 0 when it does not say.
    pub created: i64,
    /// When the change happened that this state shows, in milliseconds since 1970. Only EndpointSlices say so.
    pub triggered: Option<i64>,
    /// What it says, or every field that is not as it should be.
    pub content: Result<Content, Vec<ServiceFieldError>>,
}

/// What an object says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A Service.
    Service(ServiceName, Box<ServiceSpec>),
    /// An EndpointSlice, with its key.
    Slice(ServiceKey, EndpointSlice),
    /// Ranges of cluster addresses.
    Cidrs(Vec<IpSubnet>),
    /// The own Node.
    Node(NodeObject),
    /// An object that nodes have nothing to do with, such as a slice that belongs to no Service.
    Nothing,
}

/// What the own Node says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeObject {
    /// Its zone.
    pub zone: Option<String>,
    /// It is being deleted, or will be: load balancers should send nothing more.
    pub doomed: bool,
}

/// Metadata, without managedFields and all else that is not needed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Value,
    annotations: Value,
}

/// An object with the parts that any of the kinds has. Anything else is skipped while reading.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Parts {
    metadata: Option<Value>,
    spec: Value,
    status: Value,
    address_type: Value,
    ports: Value,
    endpoints: Value,
}

/// Only what tells which object it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

impl Object {
    /// Reads an object of `resource`. One that cannot be read still has its name, as far as it says one.
    pub(crate) fn read(resource: &Resource, json: &[u8]) -> Self {
        let head: Head<'_> = serde_json::from_slice(json).unwrap_or_default();
        let metadata = head
            .metadata
            .map(|raw| serde_json::from_str::<Metadata>(raw.get()));
        let (metadata, fault) = match metadata {
            Some(Ok(metadata)) => (metadata, None),
            Some(Err(error)) => (
                Metadata::default(),
                Some(fault("metadata", &error.to_string(), "ObjectMeta")),
            ),
            None => (
                Metadata::default(),
                Some(fault("metadata", "is missing", "ObjectMeta")),
            ),
        };
        let name = ObjectName {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        };
        let fault = fault.or_else(|| shape_fault("metadata.labels", &metadata.labels));
        let fault = fault.or_else(|| shape_fault("metadata.annotations", &metadata.annotations));
        let version = metadata.resource_version.clone().unwrap_or_default();
        let created = metadata.creation_timestamp.as_deref().and_then(millis);
        let triggered = text(&metadata.annotations, TRIGGER_ANNOTATION).and_then(millis);
        let content = match fault {
            Some(fault) => Err(vec![fault]),
            None => content(resource, &name, metadata, json),
        };
        Self {
            name,
            version,
            created: created.map_or(0, |ms| ms / 1000),
            triggered,
            content,
        }
    }
}

fn content(
    resource: &Resource,
    name: &ObjectName,
    metadata: Metadata,
    json: &[u8],
) -> Result<Content, Vec<ServiceFieldError>> {
    let one = |fault| vec![fault];
    let mut parts: Parts = serde_json::from_slice(json)
        .map_err(|error| one(fault("value", &error.to_string(), "an object of the API")))?;
    match resource {
        Resource::Services => service(name, metadata, parts),
        Resource::EndpointSlices => slice(name, &metadata, &mut parts),
        Resource::ServiceCidrs => service_cidr(&parts.spec).map(Content::Cidrs).map_err(one),
        Resource::Node(_) => Ok(Content::Node(node(&metadata, &parts.spec))),
    }
}

fn service(name: &ObjectName, metadata: Metadata, parts: Parts) -> Result<Content, Vec<ServiceFieldError>> {
    let service = service_name(&name.namespace, &name.name, "metadata.name")?;
    let metadata = json!({"labels": metadata.labels, "annotations": metadata.annotations});
    let object = json!({"metadata": metadata, "spec": parts.spec, "status": parts.status});
    let (_, spec) = read_service(&object)?;
    // What nodes do nothing for is not kept.
    if !spec.is_programmed() {
        return Ok(Content::Nothing);
    }
    Ok(Content::Service(service, Box::new(spec)))
}

fn slice(
    name: &ObjectName,
    metadata: &Metadata,
    parts: &mut Parts,
) -> Result<Content, Vec<ServiceFieldError>> {
    let Some(service) = text(&metadata.labels, SERVICE_LABEL).filter(|s| !s.is_empty()) else {
        return Ok(Content::Nothing);
    };
    let service = service_name(
        &name.namespace,
        service,
        &format!("metadata.labels[{SERVICE_LABEL}]"),
    )?;
    let key =
        ServiceKey::slice(service, &name.name).map_err(|error| vec![error.in_field("metadata.name")])?;
    let mut value = Map::new();
    for (field, part) in [
        ("addressType", &mut parts.address_type),
        ("ports", &mut parts.ports),
        ("endpoints", &mut parts.endpoints),
    ] {
        value.insert(field.to_owned(), part.take());
    }
    Ok(Content::Slice(
        key,
        EndpointSlice::from_value(&Value::Object(value))?,
    ))
}

fn service_cidr(spec: &Value) -> Result<Vec<IpSubnet>, ServiceFieldError> {
    let list = spec.get("cidrs").and_then(Value::as_array);
    let Some(list) = list else {
        return Err(fault(
            "spec.cidrs",
            &found(spec.get("cidrs")),
            "a list like [\"10.96.0.0/16\"]",
        ));
    };
    let read = |(i, item): (usize, &Value)| {
        let cidr = item.as_str().and_then(|text| text.parse().ok());
        let form = "a form like 10.96.0.0/16 or fd00:96::/112";
        cidr.ok_or_else(|| fault(&format!("spec.cidrs[{i}]"), &found(Some(item)), form))
    };
    list.iter().enumerate().map(read).collect()
}

fn node(metadata: &Metadata, spec: &Value) -> NodeObject {
    let zone = ZONE_LABELS.iter().find_map(|label| text(&metadata.labels, label));
    let taints = spec.get("taints").and_then(Value::as_array);
    let tainted = taints
        .into_iter()
        .flatten()
        .any(|taint| taint.get("key").and_then(Value::as_str) == Some(DOOMED_TAINT));
    NodeObject {
        zone: zone.filter(|z| !z.is_empty()).map(str::to_owned),
        doomed: tainted || metadata.deletion_timestamp.is_some(),
    }
}

fn service_name(namespace: &str, name: &str, field: &str) -> Result<ServiceName, Vec<ServiceFieldError>> {
    ServiceName::new(namespace, name).map_err(|error| vec![error.in_field(field)])
}

/// Labels and annotations are objects or absent.
fn shape_fault(field: &str, value: &Value) -> Option<ServiceFieldError> {
    let sound = value.is_null() || value.is_object();
    (!sound).then(|| fault(field, &found(Some(value)), "an object of texts"))
}

fn text<'a>(map: &'a Value, key: &str) -> Option<&'a str> {
    map.get(key)?.as_str()
}

fn fault(field: &str, found: &str, expected: &str) -> ServiceFieldError {
    ServiceFieldError {
        field: field.to_owned(),
        found: found.chars().take(EXCERPT * 2).collect(),
        expected: expected.to_owned(),
    }
}

fn found(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "is missing".to_owned(),
        Some(value) => format!(
            "{} is refused",
            value.to_string().chars().take(EXCERPT).collect::<String>()
        ),
    }
}

/// Milliseconds since 1970 of a time as Kubernetes writes it (RFC 3339, UTC).
fn millis(text: &str) -> Option<i64> {
    let time = humantime::parse_rfc3339(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}
