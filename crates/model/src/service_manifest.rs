//! Kubernetes manifests turned into records, for `flannelctl service apply`.

use std::fmt;

use serde_json::{Value, json};

use crate::service_access::read_service;
use crate::service_fields::ServiceFieldError;
use crate::{EndpointSlice, IpSubnet, ServiceKey, ServiceName, ServiceType};

/// Label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// One manifest that cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {fault}")]
pub struct ManifestError {
    /// Kind, namespace and name, as far as they are known: `Service shop/web`.
    pub object: String,
    /// What is wrong.
    pub fault: ServiceFieldError,
}

/// Everything that is wrong with a set of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestErrors(pub Vec<ManifestError>);

impl fmt::Display for ManifestErrors {
    /// One fault a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ManifestErrors {}

/// Turns manifests of the kinds Service, EndpointSlice, ServiceCIDR (networking.k8s.io/v1) and List into keys, relative
/// to `<prefix>/services/v1/`, and values. Fields of a spec or slice that are not known here are kept.
///
/// The ranges of all ServiceCIDR manifests become one value for the config key that holds `cidrs` only: the caller lays it
/// over what the key holds already.
///
/// # Errors
/// All faults of all manifests; nothing is converted then.
pub fn manifests_to_records(manifests: &[Value]) -> Result<Vec<(ServiceKey, Value)>, ManifestErrors> {
    let mut out = Conversion::default();
    for manifest in manifests {
        out.manifest(manifest, "");
    }
    if !out.cidrs.is_empty() {
        let texts: Vec<String> = out.cidrs.iter().map(ToString::to_string).collect();
        out.records.push((ServiceKey::Config, json!({ "cidrs": texts })));
    }
    if out.errors.is_empty() {
        Ok(out.records)
    } else {
        Err(ManifestErrors(out.errors))
    }
}

#[derive(Default)]
struct Conversion {
    records: Vec<(ServiceKey, Value)>,
    cidrs: Vec<IpSubnet>,
    errors: Vec<ManifestError>,
}

/// A manifest and how errors call it.
struct Object<'a> {
    manifest: &'a Value,
    label: String,
    namespace: &'a str,
    name: &'a str,
}

impl Conversion {
    /// `of_list` is the kind that counts where the manifest names none: that of the list in which it stands.
    fn manifest(&mut self, manifest: &Value, of_list: &str) {
        let kind = manifest.get("kind").and_then(Value::as_str).unwrap_or(of_list);
        let object = Object::new(kind, manifest);
        match kind {
            "List" => self.list(&object, ""),
            // what the API answers to a list (`kubectl get --raw`): its items do not say what they are
            "ServiceList" => self.list(&object, "Service"),
            "EndpointSliceList" => self.list(&object, "EndpointSlice"),
            "ServiceCIDRList" => self.list(&object, "ServiceCIDR"),
            "Service" => self.service(&object),
            "EndpointSlice" => self.slice(&object),
            "ServiceCIDR" => self.service_cidr(&object),
            _ => {
                let found = excerpt(manifest.get("kind"));
                self.fault(
                    &object,
                    "kind",
                    found,
                    "Service, EndpointSlice, ServiceCIDR or a List of them",
                );
            }
        }
    }

    fn list(&mut self, object: &Object<'_>, of_items: &str) {
        match object.manifest.get("items").and_then(Value::as_array) {
            Some(items) => items.iter().for_each(|item| self.manifest(item, of_items)),
            None => self.fault(
                object,
                "items",
                excerpt(object.manifest.get("items")),
                "a list of objects",
            ),
        }
    }

    fn service(&mut self, object: &Object<'_>) {
        let name = self.name(object, "metadata.name", object.name);
        let (value, spec) = match read_service(object.manifest) {
            Ok(read) => read,
            Err(faults) => return self.faults(object, faults),
        };
        // headless Services and aliases are kept, though they need nothing on a node
        let has_none = spec.headless || spec.service_type == ServiceType::ExternalName;
        if spec.cluster_ips.is_empty() && !has_none {
            let expected =
                "an address of the service CIDR that no other Service has: addresses are not handed out here";
            return self.fault(object, "spec.clusterIP", "is missing".to_owned(), expected);
        }
        self.records
            .extend(name.map(|name| (ServiceKey::Spec(name), value)));
    }

    fn slice(&mut self, object: &Object<'_>) {
        let pointer = "/metadata/labels/kubernetes.io~1service-name";
        let field = format!("metadata.labels[{SERVICE_LABEL}]");
        let Some(service) = object.manifest.pointer(pointer).and_then(Value::as_str) else {
            let found = excerpt(object.manifest.pointer(pointer));
            return self.fault(
                object,
                &field,
                found,
                "the name of the Service that the endpoints belong to",
            );
        };
        let Some(service) = self.name(object, &field, service) else {
            return;
        };
        let key = match ServiceKey::slice(service, object.name) {
            Ok(key) => key,
            Err(error) => return self.faults(object, vec![error.in_field("metadata.name")]),
        };
        if let Err(faults) = EndpointSlice::from_value(object.manifest) {
            return self.faults(object, faults);
        }
        let mut value = object.manifest.clone();
        if let Some(map) = value.as_object_mut() {
            for outer in ["apiVersion", "kind", "metadata"] {
                map.remove(outer);
            }
        }
        self.records.push((key, value));
    }

    fn service_cidr(&mut self, object: &Object<'_>) {
        let list = object
            .manifest
            .pointer("/spec/cidrs")
            .and_then(Value::as_array)
            .filter(|l| !l.is_empty());
        let Some(list) = list else {
            let found = excerpt(object.manifest.pointer("/spec/cidrs"));
            return self.fault(object, "spec.cidrs", found, "a list like [\"10.96.0.0/16\"]");
        };
        for (i, item) in list.iter().enumerate() {
            match item.as_str().map(str::parse) {
                Some(Ok(cidr)) if self.cidrs.contains(&cidr) => {}
                Some(Ok(cidr)) => self.cidrs.push(cidr),
                _ => {
                    let field = format!("spec.cidrs[{i}]");
                    self.fault(
                        object,
                        &field,
                        excerpt(Some(item)),
                        "a form like 10.96.0.0/16 or fd00:96::/112",
                    );
                }
            }
        }
    }

    fn name(&mut self, object: &Object<'_>, field: &str, name: &str) -> Option<ServiceName> {
        match ServiceName::new(object.namespace, name) {
            Ok(name) => Some(name),
            Err(error) => {
                self.faults(object, vec![error.in_field(field)]);
                None
            }
        }
    }

    fn fault(&mut self, object: &Object<'_>, field: &str, found: String, expected: &str) {
        let fault = ServiceFieldError {
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        self.errors.push(ManifestError {
            object: object.label.clone(),
            fault,
        });
    }

    fn faults(&mut self, object: &Object<'_>, faults: Vec<ServiceFieldError>) {
        let label = || object.label.clone();
        let error = |fault| ManifestError {
            object: label(),
            fault,
        };
        self.errors.extend(faults.into_iter().map(error));
    }
}

impl<'a> Object<'a> {
    fn new(kind: &str, manifest: &'a Value) -> Self {
        let text = |pointer| manifest.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").unwrap_or("default");
        let name = text("/metadata/name").unwrap_or_default();
        let kind = if kind.is_empty() { "object" } else { kind };
        let label = match (kind, name) {
            (kind, "") => format!("{kind} without a name"),
            ("ServiceCIDR", name) => format!("ServiceCIDR {name}"),
            (kind, name) => format!("{kind} {namespace}/{name}"),
        };
        Self {
            manifest,
            label,
            namespace,
            name,
        }
    }
}

fn excerpt(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "is missing".to_owned(),
        Some(value) => value.to_string().chars().take(60).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(cluster_ip: Value) -> Value {
        json!({"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},
            "spec":{"clusterIP":cluster_ip,"selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080}]}})
    }

    #[test]
    fn a_list_of_all_kinds_is_converted() {
        let list = json!({"kind":"List","items":[
            service(json!("10.96.0.10")),
            {"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4",
             "metadata":{"namespace":"shop","name":"web-x1","labels":{"kubernetes.io/service-name":"web"}},
             "ports":[{"name":"","port":8080}],"endpoints":[{"addresses":["10.5.1.2"],"targetRef":{"kind":"Pod"}}]},
            {"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16"]}}]});
        let records = manifests_to_records(&[list]).unwrap();
        let keys: Vec<String> = records.iter().map(|(k, _)| k.to_string()).collect();
        assert_eq!(keys, ["spec/default/web", "slices/shop/web/web-x1", "config"]);
        assert_eq!(records[0].1["selector"]["app"], "web", "unknown fields are kept");
        assert_eq!(records[1].1["endpoints"][0]["targetRef"]["kind"], "Pod");
        assert!(records[1].1.get("metadata").is_none());
        assert_eq!(records[2].1, json!({"cidrs":["10.96.0.0/16"]}));
        for (key, value) in &records {
            crate::ServiceRecord::parse(key, value.to_string().as_bytes()).unwrap();
        }
    }

    #[test]
    fn what_the_api_answers_to_a_list_is_converted() {
        let mut service = service(json!("10.96.0.10"));
        for outer in ["apiVersion", "kind"] {
            service.as_object_mut().unwrap().remove(outer);
        }
        let list = json!({"kind":"ServiceList","apiVersion":"v1","items":[service]});
        let records = manifests_to_records(std::slice::from_ref(&list)).unwrap();
        assert_eq!(records[0].0.to_string(), "spec/default/web");
        let mixed = json!({"kind":"List","items": list["items"]});
        let error = manifests_to_records(&[mixed]).unwrap_err().to_string();
        assert!(error.contains("object default/web: kind: is missing"), "{error}");
    }

    #[test]
    fn services_that_need_nothing_on_a_node_are_kept() {
        let alias = json!({"kind":"Service","metadata":{"name":"a"},"spec":{"type":"ExternalName","externalName":"a.example"}});
        let records = manifests_to_records(&[service(json!("None")), alias]).unwrap();
        assert_eq!(records.len(), 2);
        for (key, value) in &records {
            let record = crate::ServiceRecord::parse(key, value.to_string().as_bytes()).unwrap();
            assert!(matches!(record, crate::ServiceRecord::Spec(spec) if !spec.is_programmed()));
        }
    }

    #[test]
    fn errors_name_the_object_and_the_field() {
        let slice = json!({"kind":"EndpointSlice","addressType":"IPv4","metadata":{"name":"s"}});
        let bad = json!({"kind":"Service","metadata":{"namespace":"shop","name":"db"},"spec":{"clusterIP":"x","ports":[{"port":0}]}});
        let all = [
            service(Value::Null),
            slice,
            bad,
            json!({"kind":"Pod","metadata":{"name":"p"}}),
            json!({"kind":"ServiceCIDR","metadata":{"name":"k"},"spec":{"cidrs":["10"]}}),
            json!(3),
            json!({"kind":"Service","metadata":{"namespace":"shop","name":"Web_","annotations":{"flannel.alpha.coreos.com/ipvs-scheduler":"round"}},
                "spec":{"type":"LoadBalancer","clusterIP":"10.96.0.1","ports":[{"port":80}]},"status":{"loadBalancer":{"ingress":[{"ip":"x"}]}}}),
            json!({"kind":"Service","metadata":{"namespace":"Shop","name":"web"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}),
        ];
        let text = manifests_to_records(&all).unwrap_err().to_string();
        for part in [
            "Service default/web: spec.clusterIP: is missing",
            "EndpointSlice default/s: metadata.labels[kubernetes.io/service-name]: is missing",
            "Service shop/db: spec.clusterIP: \"x\"",
            "Service shop/db: spec.ports[0].port: 0",
            "Pod default/p: kind",
            "ServiceCIDR k: spec.cidrs[0]: \"10\"",
            "object without a name: kind: is missing",
            "Service shop/Web_: metadata.name: \"Web_\" is refused; expected lower-case letters",
            "Service shop/Web_: metadata.annotations[flannel.alpha.coreos.com/ipvs-scheduler]: \"round\" is refused",
            "Service shop/Web_: status.loadBalancer.ingress[0].ip: \"x\"",
            "Service Shop/web: metadata.namespace: \"Shop\" is refused",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
