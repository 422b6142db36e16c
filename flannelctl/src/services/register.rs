//! `flannelctl service endpoint register`: an endpoint that is there as long as this command runs.

use std::time::Duration;

use flannel_model::{EtcdPrefix, ServiceEndpoint, ServiceKey, ServiceName};
use flannel_store::{Kept, LeasedKey, Store, StoreError};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::cli::EndpointArguments;
use crate::failure::Failure;

/// A registration is renewed this often within its time to live, so that two renewals may fail.
const RENEWALS: u32 = 3;
/// After a failed call.
const RETRY: Duration = Duration::from_secs(1);

/// Registers the endpoint, keeps it until a signal asks to end, and takes it back.
pub async fn register<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    arguments: &EndpointArguments,
) -> Result<(), Failure> {
    let mut stop = Signals::new()?;
    let (key, value) = record(arguments)?;
    let mut endpoint = Registration {
        key: LeasedKey::new(
            store.clone(),
            format!("{}{key}", prefix.services()),
            arguments.ttl,
        ),
        name: key,
        pause: Duration::from_secs(arguments.ttl.into()) / RENEWALS,
    };
    // The first write tells at once what is wrong with etcd; later troubles are lived through.
    endpoint.write(&value).await?;
    eprintln!(
        "flannelctl: {} is registered; it goes {} s after this command is gone",
        endpoint.name, arguments.ttl
    );
    tokio::select! {
        failed = endpoint.keep(&value) => return Err(failed),
        () = stop.next() => {}
    }
    if arguments.drain > 0 {
        let value = draining(&value);
        endpoint.write(&value).await?;
        eprintln!(
            "flannelctl: {} takes no new connections; it goes in {} s",
            endpoint.name, arguments.drain
        );
        tokio::select! {
            () = sleep(Duration::from_secs(arguments.drain.into())) => {}
            failed = endpoint.keep(&value) => return Err(failed),
            // a second signal ends the wait
            () = stop.next() => {}
        }
    }
    endpoint.key.remove().await?;
    eprintln!("flannelctl: {} is taken back", endpoint.name);
    Ok(())
}

/// The key and its value, checked as every reader will check them.
fn record(arguments: &EndpointArguments) -> Result<(ServiceKey, String), Failure> {
    let whole = arguments.service.as_str();
    let (namespace, name) = whole.split_once('/').unwrap_or(("default", whole));
    let service = ServiceName::new(namespace, name)
        .map_err(|error| anyhow::anyhow!("{whole:?} is not the name of a Service: {error}"))?;
    let port = match arguments.port_name.as_str() {
        "" => "-",
        name => name,
    };
    let key = ServiceKey::parse(&format!("endpoints/{service}/{port}/{}", arguments.address))
        .map_err(anyhow::Error::new)?;
    let mut value = Map::new();
    value.insert("weight".to_owned(), json!(arguments.weight));
    for (field, text) in [("node", &arguments.node), ("zone", &arguments.zone)] {
        if let Some(text) = text {
            value.insert(field.to_owned(), json!(text));
        }
    }
    let value = Value::Object(value).to_string();
    ServiceEndpoint::parse(value.as_bytes()).map_err(anyhow::Error::new)?;
    Ok((key, value))
}

/// The same endpoint on its way out: it is used only where no other endpoint is ready.
fn draining(value: &str) -> String {
    let mut value: Value = serde_json::from_str(value).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("state".to_owned(), json!("terminating"));
    }
    value.to_string()
}

struct Registration<S> {
    key: LeasedKey<S>,
    name: ServiceKey,
    pause: Duration,
}

/// What a renewal has to say.
enum Renewed {
    Alive,
    Again,
    Taken,
}

impl<S: Store> Registration<S> {
    async fn write(&mut self, value: &str) -> Result<(), Failure> {
        match self.key.write(value).await? {
            true => Ok(()),
            false => Err(self.taken()),
        }
    }

    fn taken(&self) -> Failure {
        Failure::Content(format!(
            "{} is written by somebody else; expected one registrant an endpoint",
            self.name
        ))
    }

    /// Renews until it cannot go on.
    async fn keep(&mut self, value: &str) -> Failure {
        let mut away = false;
        loop {
            sleep(if away { RETRY } else { self.pause }).await;
            match self.renew(value).await {
                Ok(Renewed::Taken) => return self.taken(),
                Ok(Renewed::Again) => {
                    away = false;
                    eprintln!("flannelctl: {} was gone and is registered again", self.name);
                }
                Ok(Renewed::Alive) if std::mem::take(&mut away) => {
                    eprintln!("flannelctl: etcd answers again, {} is registered", self.name);
                }
                Ok(Renewed::Alive) => {}
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        eprintln!("flannelctl: {error}; trying again");
                    }
                }
            }
        }
    }

    async fn renew(&mut self, value: &str) -> Result<Renewed, StoreError> {
        Ok(match self.key.keep().await? {
            Kept::Alive => Renewed::Alive,
            Kept::Taken => Renewed::Taken,
            Kept::Gone => match self.key.write(value).await? {
                true => Renewed::Again,
                false => Renewed::Taken,
            },
        })
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::memory::MemoryStore;

    fn arguments(service: &str, address: &str) -> EndpointArguments {
        EndpointArguments {
            service: service.to_owned(),
            address: address.parse().unwrap(),
            port_name: "http".to_owned(),
            weight: 3,
            node: Some("n1".to_owned()),
            zone: None,
            ttl: 9,
            drain: 0,
        }
    }

    #[test]
    fn records_are_checked_as_readers_do() {
        let (key, value) = record(&arguments("shop/web", "10.5.1.2:8080")).unwrap();
        assert_eq!(key.to_string(), "endpoints/shop/web/http/10.5.1.2:8080");
        assert_eq!(value, r#"{"node":"n1","weight":3}"#);
        let draining = ServiceEndpoint::parse(draining(&value).as_bytes()).unwrap();
        assert_eq!(
            (draining.weight, draining.state),
            (3, flannel_model::EndpointState::Terminating)
        );
        let unnamed = EndpointArguments {
            port_name: String::new(),
            ..arguments("web", "[fd00::2]:53")
        };
        assert_eq!(
            record(&unnamed).unwrap().0.to_string(),
            "endpoints/default/web/-/[fd00::2]:53"
        );
        assert!(record(&arguments("Shop/web", "10.5.1.2:8080")).is_err());
        assert!(record(&arguments("shop/web", "10.5.1.2:0")).is_err());
        let heavy = EndpointArguments {
            weight: 70_000,
            ..arguments("shop/web", "10.5.1.2:80")
        };
        assert!(record(&heavy).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_that_expires_or_is_deleted_is_made_again() {
        let store = MemoryStore::new();
        let (name, value) = record(&arguments("shop/web", "10.5.1.2:8080")).unwrap();
        let full = format!("/n/services/v1/{name}");
        let mut endpoint = Registration {
            key: LeasedKey::new(store.clone(), full.clone(), 9),
            name,
            pause: Duration::from_secs(3),
        };
        endpoint.write(&value).await.unwrap();
        let meddling = async {
            sleep(Duration::from_secs(4)).await;
            store.delete(&full).await.unwrap();
            sleep(Duration::from_secs(10)).await;
            assert!(store.get(&full).await.unwrap().0.is_some(), "made again");
            store.freeze(true);
            sleep(Duration::from_secs(60)).await;
            store.freeze(false);
            sleep(Duration::from_secs(20)).await;
            assert!(store.get(&full).await.unwrap().0.is_some(), "after an outage");
            store.put(&full, "{}").await.unwrap();
            sleep(Duration::from_secs(10)).await;
        };
        tokio::select! {
            failure = endpoint.keep(&value) => assert!(matches!(failure, Failure::Content(_)), "{failure:?}"),
            () = meddling => panic!("a stranger's write went unnoticed"),
        }
        endpoint.key.remove().await.unwrap();
        assert!(
            store.get(&full).await.unwrap().0.is_some(),
            "what is a stranger's is left alone"
        );
    }
}
