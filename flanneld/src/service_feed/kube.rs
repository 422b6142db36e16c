//! Services from a Kubernetes API server: four collections that together are what etcd holds below one prefix.

mod mirror;

use flannel_kube::{Client, Resource, follow};
use flannel_model::ServicesConfig;
use tokio::sync::mpsc;

use super::news::News;
use mirror::{Kind, Mirror};

/// Which server is followed, and what it does not know.
#[derive(Debug)]
pub struct KubeSource {
    /// The server.
    pub client: Client,
    /// Name of this node.
    pub node_name: String,
    /// What holds for all Services, from the command line. Its ranges count instead of the server's ServiceCIDRs, unless empty.
    pub config: ServicesConfig,
}

impl KubeSource {
    /// Tells what happens until nobody listens.
    pub(super) async fn feed(self, news: mpsc::Sender<News>) {
        let start = |resource: Resource| follow(self.client.clone(), resource).1;
        let mut services = start(Resource::Services);
        let mut slices = start(Resource::EndpointSlices);
        let mut node = start(Resource::Node(self.node_name.clone()));
        let given = !self.config.cidrs.is_empty();
        let (mut cidrs, _keep) = match given {
            false => (start(Resource::ServiceCidrs), None),
            // A channel on which nothing comes.
            true => {
                let (sender, receiver) = mpsc::channel(1);
                (receiver, Some(sender))
            }
        };
        let mut mirror = Mirror::new(&self);
        for item in mirror.begin() {
            if news.send(item).await.is_err() {
                return;
            }
        }
        loop {
            let told = tokio::select! {
                event = services.recv() => event.map(|event| mirror.take(Kind::Service, event)),
                event = slices.recv() => event.map(|event| mirror.take(Kind::Slice, event)),
                event = cidrs.recv() => event.map(|event| mirror.take(Kind::Cidr, event)),
                event = node.recv() => event.map(|event| mirror.take(Kind::Node, event)),
            };
            let Some(told) = told else { return };
            for item in told {
                if news.send(item).await.is_err() {
                    return;
                }
            }
        }
    }
}
