//! Who reaches a Service from outside, and for how long a client keeps its endpoint.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::IpSubnet;
use crate::service_config::RANGE_FORM;
use crate::service_fields::{Faults, Field, ServiceFieldError};
use crate::service_spec::{ADDRESS, ServiceSpec, virtual_ip};

/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const AFFINITY_TIMEOUT: u32 = 10_800;
/// Its largest value: a day.
const MAX_AFFINITY: u64 = 86_400;

/// Label that hands a Service to another proxy.
const PROXY_LABEL: &str = "/metadata/labels/service.kubernetes.io~1service-proxy-name";
/// Annotation from before `loadBalancerSourceRanges`: ranges joined by commas.
const RANGES_ANNOTATION: &str =
    "/metadata/annotations/service.beta.kubernetes.io~1load-balancer-source-ranges";
/// Annotations that choose scheduler and flags of a Service.
const SCHEDULER_ANNOTATION: &str = "/metadata/annotations/flannel.alpha.coreos.com~1ipvs-scheduler";
const FLAGS_ANNOTATION: &str = "/metadata/annotations/flannel.alpha.coreos.com~1ipvs-scheduler-flags";

/// The value of a `spec/` key from a Kubernetes Service: its `spec`, with what matters of its labels, annotations and status
/// laid beside it as `serviceProxyName`, `loadBalancerSourceRanges`, `scheduler`, `schedulerFlags` and `loadBalancer`.
pub fn spec_of_service(object: &Value) -> Value {
    let mut spec = object.get("spec").cloned().unwrap_or_else(|| json!({}));
    let Some(fields) = spec.as_object_mut() else {
        return spec;
    };
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    if let Some(name) = text(PROXY_LABEL) {
        fields.insert("serviceProxyName".to_owned(), json!(name));
    }
    let has_ranges = fields
        .get("loadBalancerSourceRanges")
        .and_then(Value::as_array)
        .is_some_and(|r| !r.is_empty());
    if let Some(ranges) = text(RANGES_ANNOTATION).filter(|_| !has_ranges) {
        let ranges: Vec<&str> = ranges
            .split(',')
            .map(str::trim)
            .filter(|r| !r.is_empty())
            .collect();
        fields.insert("loadBalancerSourceRanges".to_owned(), json!(ranges));
    }
    for (annotation, field) in [
        (SCHEDULER_ANNOTATION, "scheduler"),
        (FLAGS_ANNOTATION, "schedulerFlags"),
    ] {
        if let Some(value) = text(annotation) {
            fields.insert(field.to_owned(), json!(value));
        }
    }
    if let Some(status) = object.pointer("/status/loadBalancer").filter(|s| s.is_object()) {
        fields.insert("loadBalancer".to_owned(), status.clone());
    }
    spec
}

/// The same, and what it says. Faults are named as the object has it: `spec.ports[0].port`, `status.loadBalancer.ingress[0].ip`,
/// `metadata.annotations[flannel.alpha.coreos.com/ipvs-scheduler]`.
///
/// # Errors
/// All faults.
pub fn read_service(object: &Value) -> Result<(Value, ServiceSpec), Vec<ServiceFieldError>> {
    let value = spec_of_service(object);
    match ServiceSpec::from_value(&value) {
        Ok(spec) => Ok((value, spec)),
        Err(mut faults) => {
            for fault in &mut faults {
                fault.field = place_of(object, &fault.field);
            }
            Err(faults)
        }
    }
}

/// Where a field of the value stands in the object that it was made from.
fn place_of(object: &Value, field: &str) -> String {
    let annotation = match field {
        "scheduler" => Some(SCHEDULER_ANNOTATION),
        "schedulerFlags" => Some(FLAGS_ANNOTATION),
        _ => None,
    };
    if let Some(pointer) = annotation.filter(|pointer| object.pointer(pointer).is_some_and(Value::is_string))
    {
        let name = pointer.trim_start_matches("/metadata/annotations/");
        return format!("metadata.annotations[{}]", name.replace("~1", "/"));
    }
    let is_status = object
        .pointer("/status/loadBalancer")
        .is_some_and(Value::is_object);
    match field.strip_prefix("loadBalancer.") {
        Some(rest) if is_status => format!("status.loadBalancer.{rest}"),
        _ => format!("spec.{field}"),
    }
}

/// `sessionAffinity` with its timeout.
pub(crate) fn read_affinity(root: &Field<'_>, faults: &mut Faults) -> Option<u32> {
    let kind = |value: &Value| match value.as_str()? {
        "" | "None" => Some(false),
        "ClientIP" => Some(true),
        _ => None,
    };
    let wanted = root
        .get("sessionAffinity")
        .optional(faults, "None or ClientIP", kind)
        .unwrap_or(false);
    let seconds = |value: &Value| {
        let seconds = value.as_u64().filter(|s| (1..=MAX_AFFINITY).contains(s));
        seconds.and_then(|s| u32::try_from(s).ok())
    };
    let timeout = root
        .get("sessionAffinityConfig")
        .get("clientIP")
        .get("timeoutSeconds")
        .optional(faults, "seconds from 1 to 86400", seconds)
        .unwrap_or(AFFINITY_TIMEOUT);
    wanted.then_some(timeout)
}

/// The addresses of `{ingress: [{ip, ipMode}]}` that nodes answer for themselves. With `ipMode: Proxy` traffic goes out to the
/// load balancer (KEP-1860); an entry with a host name only has no address.
pub(crate) fn read_load_balancer(field: &Field<'_>, faults: &mut Faults) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for entry in field.get("ingress").items(faults) {
        let mode = |value: &Value| match value.as_str()? {
            "" | "VIP" => Some(true),
            "Proxy" => Some(false),
            _ => None,
        };
        let ours = entry
            .get("ipMode")
            .optional(faults, "VIP or Proxy", mode)
            .unwrap_or(true);
        let ip = entry.get("ip");
        if !ours || ip.text(faults).is_none() {
            continue;
        }
        ips.extend(ip.required(faults, ADDRESS, virtual_ip));
    }
    ips
}

/// Ranges in order and without doublets; blanks around one are forgiven, as the API server forgives them.
pub(crate) fn read_source_ranges(field: &Field<'_>, faults: &mut Faults) -> Vec<IpSubnet> {
    let range = |value: &Value| value.as_str()?.trim().parse().ok();
    let items = field.items(faults);
    let mut ranges: Vec<IpSubnet> = items
        .iter()
        .filter_map(|item| item.required(faults, RANGE_FORM, range))
        .collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServiceSpec;

    #[test]
    fn labels_annotations_and_status_count() {
        let object = json!({
            "metadata": {
                "labels": {"service.kubernetes.io/service-proxy-name": "other"},
                "annotations": {
                    "service.beta.kubernetes.io/load-balancer-source-ranges": "198.51.100.0/24, 203.0.113.7/32",
                    "flannel.alpha.coreos.com/ipvs-scheduler": "sh",
                    "flannel.alpha.coreos.com/ipvs-scheduler-flags": "sh-port"}},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80}],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.7", "ipMode": "VIP"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}, {"hostname": "lb"}]}}});
        let spec = ServiceSpec::from_value(&spec_of_service(&object)).unwrap();
        assert_eq!(spec.other_proxy.as_deref(), Some("other"));
        assert_eq!(spec.source_ranges.len(), 2);
        assert_eq!(
            (
                spec.scheduler.unwrap().as_str(),
                spec.scheduler_flags.unwrap().bits()
            ),
            ("sh", 0x10)
        );
        assert_eq!(spec.load_balancer_ips, ["203.0.113.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(spec.affinity, Some(600));
    }

    #[test]
    fn faults_are_named() {
        let text = ServiceSpec::parse(
            br#"{"type":"LoadBalancer","ports":[{"port":80}],"sessionAffinity":"ClientIP",
             "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":0}},"loadBalancerSourceRanges":["198.51.100/24"],
             "loadBalancer":{"ingress":[{"ip":"127.0.0.1"},{"ip":"203.0.113.7","ipMode":"NAT"}]}}"#,
        )
        .unwrap_err()
        .to_string();
        for part in [
            "sessionAffinityConfig.clientIP.timeoutSeconds: 0",
            "loadBalancerSourceRanges[0]: \"198.51.100/24\"",
            "loadBalancer.ingress[0].ip: \"127.0.0.1\"",
            "loadBalancer.ingress[1].ipMode: \"NAT\"",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
