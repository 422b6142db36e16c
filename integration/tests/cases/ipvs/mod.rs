//! What stands in the kernel for Services through IPVS, and what never does: order, ownership, drain, refusal, repair.

mod kube_proxy;
mod leaving;
mod ownership;
mod refusal;
mod schedulers;
mod stand;
mod steadiness;

pub use kube_proxy::services_change_hands_under_traffic;
pub use leaving::{
    connections_drain_within_a_bound_that_a_crash_does_not_end,
    flows_to_an_endpoint_that_is_gone_end_and_no_others,
};
pub use ownership::{
    only_virtual_servers_grow_with_services, rules_stand_before_routes_and_virtual_servers,
    virtual_servers_of_others_keep_every_byte,
};
pub use refusal::{
    addresses_that_are_taken_are_refused_by_name, ports_of_the_host_do_not_answer_on_virtual_addresses,
};
pub use schedulers::every_scheduler_serves_or_is_named;
pub use steadiness::{a_thousand_changes_a_second_end_in_the_exact_state, what_others_change_is_repaired};
