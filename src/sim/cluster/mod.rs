//! Several machines, their network, and a layout over them.

pub mod frontend;
pub mod machine;
pub mod network;

use std::sync::Arc;
use std::time::Duration;

use garage_rpc::layout::NodeRole;

use machine::{Machine, Setup};
use network::Network;

/// Longest wait for something that must happen by itself.
const SETTLE_MAX: Duration = Duration::from_secs(300);

pub struct Cluster {
    pub network: Network,
    pub machines: Vec<Arc<Machine>>,
}

impl Cluster {
    /// Machines that run and know each other, with a layout over the first `roles` of them, each in a zone of its own.
    pub async fn start(seed: u64, machines: usize, roles: usize, setup: Setup) -> Cluster {
        let network = Network::new(seed ^ 0x6e65_7477);
        let machine = |number: usize| {
            let own_seed = seed.wrapping_mul(1000).wrapping_add(number as u64);
            Arc::new(Machine::new(number, own_seed, network.clone(), setup))
        };
        let machines: Vec<_> = (0..machines).map(machine).collect();
        for machine in &machines {
            machine.meets(machines.iter().filter(|peer| peer.number != machine.number).map(|peer| peer.address()).collect());
            machine.start().await;
        }
        let cluster = Cluster { network, machines };
        cluster.until("the machines are connected", |cluster| cluster.is_connected()).await;
        let layout = cluster.machines[0].node().unwrap().layout;
        for machine in cluster.machines.iter().take(roles) {
            let zone = format!("zone{}", machine.number);
            layout.stage_role(machine.id, NodeRole { zone, capacity: Some(1 << 30), tags: Vec::new() }).await.unwrap();
        }
        layout.apply(1).await.unwrap();
        cluster.until("all know the layout", |cluster| cluster.knows_layout(1)).await;
        cluster
    }

    pub fn is_connected(&self) -> bool {
        let connected = |machine: &Arc<Machine>| {
            let Some(node) = machine.node() else { return false };
            self.machines.iter().all(|peer| node.mesh.is_up(peer.id))
        };
        self.machines.iter().all(connected)
    }

    fn knows_layout(&self, number: u64) -> bool {
        self.machines.iter().all(|machine| machine.node().is_some_and(|node| node.layout.current().version() == number))
    }

    /// Waits, in virtual time, until something is so.
    pub async fn until(&self, what: &str, condition: impl Fn(&Cluster) -> bool) {
        let waiting = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        assert!(tokio::time::timeout(SETTLE_MAX, waiting).await.is_ok(), "never came true: {what}");
    }
}
