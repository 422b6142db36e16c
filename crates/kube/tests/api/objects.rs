//! Objects as real clusters have them, and objects that are wrong.

use super::support::{Mirror, client, server, service};
use flannel_kube::fixture::{ApiServer, Collection};
use flannel_kube::{Content, Object, Resource};
use flannel_model::{EndpointState, ServiceProtocol, ServiceType, TrafficPolicy};
use serde_json::{Value, json};

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What a follower makes of the objects of a collection.
async fn read(server: &ApiServer, resource: Resource) -> Mirror {
    let mut mirror = Mirror::new(client(server), resource);
    mirror.until("the list", |m| m.inits == 1).await;
    mirror
}

async fn read_one(collection: Collection, resource: Resource, object: Value) -> Object {
    let server = server();
    server.put(collection, object);
    let mirror = read(&server, resource).await;
    mirror.objects.into_values().next().expect("one object")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_a_real_cluster() {
    let object = read_one(Collection::Services, Resource::Services, golden("service")).await;
    assert_eq!(object.name.to_string(), "shop/web");
    assert_eq!(object.created, 1_777_885_964);
    let Ok(Content::Service(name, spec)) = object.content else {
        panic!("{:?}", object.content);
    };
    assert_eq!(name.to_string(), "shop/web");
    assert_eq!(spec.service_type, ServiceType::LoadBalancer);
    let ips: Vec<String> = spec.cluster_ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.96.118.4", "fd00:96::76:4"]);
    assert_eq!(spec.external_traffic, TrafficPolicy::Local);
    assert_eq!(
        (spec.ports[0].node_port, spec.ports[1].protocol),
        (Some(30846), ServiceProtocol::Udp)
    );
    assert_eq!(
        spec.load_balancer_ips,
        ["203.0.113.7".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        (spec.affinity, spec.health_check_node_port),
        (Some(600), Some(31927))
    );
    assert_eq!(spec.source_ranges.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_slice_of_a_real_cluster() {
    let object = read_one(
        Collection::EndpointSlices,
        Resource::EndpointSlices,
        golden("endpointslice"),
    )
    .await;
    assert_eq!(object.triggered, Some(1_777_885_971_250));
    let Ok(Content::Slice(key, slice)) = object.content else {
        panic!("{:?}", object.content);
    };
    assert_eq!(key.to_string(), "slices/shop/web/web-x7k2p");
    let states: Vec<EndpointState> = slice.endpoints.iter().map(|e| e.state).collect();
    assert_eq!(
        states,
        [
            EndpointState::Ready,
            EndpointState::Terminating,
            EndpointState::NotReady
        ]
    );
    assert_eq!(slice.endpoints[0].node.as_deref(), Some("n1"));
    assert_eq!(slice.endpoints[0].hints.as_ref().unwrap().for_nodes, ["n1"]);
    assert_eq!(slice.ports.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_the_own_node_of_a_real_cluster() {
    let object = read_one(
        Collection::ServiceCidrs,
        Resource::ServiceCidrs,
        golden("servicecidr"),
    )
    .await;
    let Ok(Content::Cidrs(cidrs)) = object.content else {
        panic!("{:?}", object.content);
    };
    let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.96.0.0/16", "fd00:96::/112"]);
    let node = Resource::Node("n1".to_owned());
    let object = read_one(Collection::Nodes, node.clone(), golden("node")).await;
    let Ok(Content::Node(own)) = object.content else {
        panic!("{:?}", object.content);
    };
    assert_eq!((own.zone.as_deref(), own.doomed), (Some("eu-1a"), true));
    let mut calm = golden("node");
    calm["spec"]["taints"] = Value::Null;
    let object = read_one(Collection::Nodes, node, calm).await;
    assert!(matches!(object.content, Ok(Content::Node(own)) if !own.doomed));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_objects_are_named_with_their_fields_and_harm_no_others() {
    let server = server();
    let with = |name: &str, field: &str, value: Value| {
        let mut object = service(name, "10.96.0.9");
        *object.pointer_mut(field).unwrap() = value;
        object
    };
    server.put(Collection::Services, service("good", "10.96.0.1"));
    server.put(
        Collection::Services,
        with("address", "/spec/clusterIP", json!("10.96")),
    );
    server.put(
        Collection::Services,
        with("port", "/spec/ports/0/port", json!(70000)),
    );
    server.put(Collection::Services, with("shape", "/spec", json!(["x"])));
    server.put(
        Collection::Services,
        with(
            "labels",
            "/metadata",
            json!({"namespace": "shop", "name": "labels", "labels": 5}),
        ),
    );
    server.put(
        Collection::Services,
        with("Name", "/spec/clusterIP", json!("10.96.0.3")),
    );
    server.put(Collection::Services, service("also-good", "10.96.0.2"));
    let mirror = read(&server, Resource::Services).await;
    let fault = |name: &str| {
        let object = mirror
            .objects
            .get(name)
            .unwrap_or_else(|| panic!("{name} of {:?}", mirror.names()));
        let faults = object.content.as_ref().expect_err(name);
        faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" | ")
    };
    assert!(
        fault("shop/address").contains("spec.clusterIP: \"10.96\""),
        "{}",
        fault("shop/address")
    );
    assert!(
        fault("shop/port").contains("spec.ports[0].port: 70000"),
        "{}",
        fault("shop/port")
    );
    assert!(
        fault("shop/shape").contains("spec.value") || fault("shop/shape").contains("a JSON object"),
        "{}",
        fault("shop/shape")
    );
    assert!(
        fault("shop/Name").contains("metadata.name: \"Name\""),
        "{}",
        fault("shop/Name")
    );
    assert!(
        fault("shop/labels").contains("metadata"),
        "{}",
        fault("shop/labels")
    );
    assert!(mirror.address("shop/good").is_some() && mirror.address("shop/also-good").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_slices_and_ranges_are_named() {
    let server = server();
    let slice = |name: &str, service: Value, endpoint: Value| {
        json!({"metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [endpoint]})
    };
    server.put(
        Collection::EndpointSlices,
        slice("ok", json!("web"), json!({"addresses": ["10.5.1.2"]})),
    );
    server.put(
        Collection::EndpointSlices,
        slice("loop", json!("web"), json!({"addresses": ["127.0.0.1"]})),
    );
    server.put(
        Collection::EndpointSlices,
        slice("owner", json!("-web"), json!({"addresses": ["10.5.1.2"]})),
    );
    server.put(
        Collection::EndpointSlices,
        slice("nobody", Value::Null, json!({"addresses": ["10.5.1.2"]})),
    );
    let mirror = read(&server, Resource::EndpointSlices).await;
    let content = |name: &str| format!("{:?}", mirror.objects[name].content);
    assert!(matches!(
        mirror.objects["shop/ok"].content,
        Ok(Content::Slice(..))
    ));
    assert!(
        content("shop/loop").contains("endpoints[0].addresses[0]"),
        "{}",
        content("shop/loop")
    );
    assert!(
        content("shop/owner").contains("metadata.labels[kubernetes.io/service-name]"),
        "{}",
        content("shop/owner")
    );
    assert_eq!(mirror.objects["shop/nobody"].content, Ok(Content::Nothing));
    let bad = json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0/16", "ten"]}});
    let object = read_one(Collection::ServiceCidrs, Resource::ServiceCidrs, bad).await;
    assert!(
        format!("{:?}", object.content).contains("spec.cidrs[1]"),
        "{:?}",
        object.content
    );
}
