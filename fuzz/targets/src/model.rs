//! What other programs and other nodes write: subnet.env and the values in etcd. What is read is written and read again the same.

use flannel_model::{LeaseKey, LeaseValue, NetworkConfig, SubnetEnv};

/// subnet.env.
pub fn subnet_env(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(env) = SubnetEnv::parse(text) {
        let again = SubnetEnv::parse(&env.render());
        assert_eq!(again.map(|again| again.render()).ok(), Some(env.render()));
    }
}

/// The key of a lease.
pub fn lease_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(key) = text.parse::<LeaseKey>() {
        let again = key.to_string().parse::<LeaseKey>();
        assert_eq!(again.map(|again| again.to_string()).ok(), Some(key.to_string()));
    }
}

/// The value of a lease.
pub fn lease_value(data: &[u8]) {
    if let Ok(value) = LeaseValue::parse(data) {
        let again = LeaseValue::parse(value.to_json().as_bytes());
        assert_eq!(again.map(|again| again.to_json()).ok(), Some(value.to_json()));
    }
}

/// The network's configuration.
pub fn network_config(data: &[u8]) {
    let _ = NetworkConfig::parse(data);
}
