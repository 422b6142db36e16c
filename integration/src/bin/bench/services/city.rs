//! What both contenders are given: Services of one port with ten endpoints each.

use serde_json::json;

/// Endpoints of each Service.
pub const ENDPOINTS: usize = 10;
const SERVICES: &str = "/coreos.com/network/services/v1";

/// The cluster address of a Service.
pub fn virtual_ip(index: usize) -> String {
    format!("10.200.{}.{}", index / 250, index % 250 + 1)
}

/// The endpoints of a Service; the first is another one in each `version`.
pub fn endpoints(index: usize, version: usize) -> Vec<String> {
    let ip = |number: usize| {
        let which = index * ENDPOINTS + number;
        format!(
            "10.{}.{}.{}",
            which / 62_500 + 1,
            which / 250 % 250,
            which % 250 + 1
        )
    };
    let first = format!("10.100.{}.{}", version / 250, version % 250 + 1);
    let rest = (1..ENDPOINTS).map(ip);
    let first = if version == 0 { ip(0) } else { first };
    std::iter::once(first).chain(rest).collect()
}

/// The key of the cluster's config and its value.
pub fn config() -> (String, String) {
    let value = json!({"cidrs": ["10.200.0.0/16"]}).to_string();
    (format!("{SERVICES}/config"), value)
}

/// Spec and slice of a Service.
pub fn records(index: usize) -> [(String, String); 2] {
    let spec = json!({"clusterIP": virtual_ip(index), "ports": [{"name": "http", "port": 80}]});
    [
        (format!("{SERVICES}/spec/bench/shop-{index}"), spec.to_string()),
        slice(index, 0),
    ]
}

/// The slice of a Service.
pub fn slice(index: usize, version: usize) -> (String, String) {
    let endpoint = |ip: String| json!({"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "elsewhere"});
    let endpoints: Vec<_> = endpoints(index, version).into_iter().map(endpoint).collect();
    let slice =
        json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints});
    (
        format!("{SERVICES}/slices/bench/shop-{index}/one"),
        slice.to_string(),
    )
}
