//! The part of the Container Runtime Interface that starts and ends pods, as Kubernetes' node agent uses it.
//!
//! Field numbers are those of the interface's api.proto, version v1; fields that are not needed here are left out, which
//! protocol buffers allow on both sides.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::image::IMAGE;
use crate::clock::limit;

/// A connection to a runtime.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// What a pod is to be.
#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, repeated, tag = "5")]
    port_mappings: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PortMapping {
    /// 0: TCP
    #[prost(int32, tag = "1")]
    protocol: i32,
    #[prost(int32, tag = "2")]
    container_port: i32,
    #[prost(int32, tag = "3")]
    host_port: i32,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// The request or the answer that is nothing but an id.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct PodStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct PodNetwork {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateRequest {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
    #[prost(string, tag = "11")]
    log_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExecRequest {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecAnswer {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    status: i32,
}

impl PodConfig {
    /// A pod called `name`.
    pub fn new(name: &str) -> Self {
        Self {
            metadata: Some(PodMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: format!("/tmp/logs-{name}"),
            ..Self::default()
        }
    }

    /// With a TCP port of the node that leads to one of the pod.
    pub fn port(mut self, host: u16, container: u16) -> Self {
        self.port_mappings.push(PortMapping {
            protocol: 0,
            container_port: container.into(),
            host_port: host.into(),
        });
        self
    }
}

impl Cri {
    pub(super) fn connect(socket: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{socket}"))?;
        let channel = runtime.block_on(endpoint.connect())?;
        Ok(Self { runtime, channel })
    }

    /// Starts a pod; its id.
    pub fn run_pod(&self, config: &PodConfig) -> Result<String> {
        let request = RunPodRequest {
            config: Some(config.clone()),
        };
        Ok(self.call::<_, Id>("RunPodSandbox", request)?.id)
    }

    /// A pod's address.
    pub fn pod_ip(&self, pod: &str) -> Result<String> {
        let status: PodStatusAnswer = self.call("PodSandboxStatus", Id { id: pod.into() })?;
        let network = status.status.and_then(|status| status.network);
        network
            .map(|network| network.ip)
            .filter(|ip| !ip.is_empty())
            .with_context(|| format!("pod {pod} has no address"))
    }

    /// Starts a container from [`IMAGE`] in a pod; its id.
    pub fn start_container(&self, pod: &str, config: &PodConfig, name: &str) -> Result<String> {
        let request = CreateRequest {
            pod: pod.into(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.into() }),
                image: Some(Id { id: IMAGE.into() }),
                log_path: format!("{name}.log"),
            }),
            pod_config: Some(config.clone()),
        };
        let Id { id } = self.call("CreateContainer", request)?;
        let Nothing {} = self.call("StartContainer", Id { id: id.clone() })?;
        Ok(id)
    }

    /// Runs a program in a container; it must succeed.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let request = ExecRequest {
            container: container.into(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            seconds: i64::try_from(limit(20).as_secs())?,
        };
        let answer: ExecAnswer = self.call("ExecSync", request)?;
        let stderr = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(
            answer.status == 0,
            "{command:?} in {container}: status {}: {stderr}",
            answer.status
        );
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    /// Ends a pod's containers and takes its network away.
    pub fn stop_pod(&self, pod: &str) -> Result<()> {
        let Nothing {} = self.call("StopPodSandbox", Id { id: pod.into() })?;
        Ok(())
    }

    /// Removes a pod.
    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        let Nothing {} = self.call("RemovePodSandbox", Id { id: pod.into() })?;
        Ok(())
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        let patience: Duration = limit(60);
        let answer = self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await?;
            let mut request = tonic::Request::new(request);
            request.set_timeout(patience);
            grpc.unary(request, path, ProstCodec::<Q, A>::default())
                .await
                .map_err(anyhow::Error::from)
        });
        Ok(answer.with_context(|| method.to_owned())?.into_inner())
    }
}
