//! The tests, by topic. To add one: write `pub fn what_holds() -> Result<()>` in its topic's file and add its line here.

mod backend;
mod bad_input;
mod beside_flannel;
mod by_hand;
mod cleanup;
mod clients;
mod clock;
mod cluster;
mod cni;
mod common;
mod config;
mod crash;
mod credentials;
mod ctl;
mod ctl_view;
mod dual_stack;
mod endpoint;
mod etcd_access;
mod explain;
mod flows;
mod forged;
mod host;
mod hostile;
mod hostile_records;
mod ipvs;
mod kills;
mod kube;
mod kube_addresses;
mod kube_move;
mod lease;
mod long_outage;
mod look;
mod outage;
mod overlay;
mod ownership;
mod probes;
mod repair;
mod replaced;
pub mod selftest;
mod service;
mod service_view;
mod services;
mod single_peers;
mod suspend;
mod take_over;
mod udp;
mod vlan;
mod wireguard;

use crate::runner::Case;

/// A test under its own path as its name.
macro_rules! case {
    ($kind:ident $topic:ident::$name:ident) => {
        Case::$kind(
            concat!(stringify!($topic), "::", stringify!($name)),
            $topic::$name,
        )
    };
}

/// Twenty kills and starts under traffic, in seconds.
const KILLS: u64 = 180;

/// Every test. `plain` runs on any kernel; `ipvs`, `ipip`, `wireguard` and `vlans` need those (and run in the guest where this machine has
/// none); `no_ipvs`, `no_wireguard` and `no_vlans` are about kernels without.
pub fn all() -> Vec<Case> {
    let mut all = vec![
        case!(plain selftest::underlay_is_reachable),
        case!(plain selftest::etcd_answers_and_obeys),
        case!(plain selftest::nodes_have_their_own_files),
        case!(plain selftest::nothing_remains_after_sigkill),
        case!(plain selftest::two_labs_do_not_collide),
        case!(plain selftest::pinger_counts_what_is_lost),
        case!(ipvs selftest::ipvs_forwards),
        case!(plain lease::lease_is_renewed), // the longest of all, so early
        case!(plain long_outage::a_minute_and_more_is_not_felt).within(long_outage::seconds()),
        case!(plain lease::record_is_what_flannel_writes),
        case!(plain lease::subnet_file_and_device_are_flannels),
        case!(plain lease::ready_is_told_to_systemd_and_by_http),
        case!(plain lease::a_node_asks_little_of_etcd),
        case!(plain lease::earlier_lease_is_taken_over_and_kept),
        case!(plain lease::earlier_subnet_is_asked_for_again),
        case!(plain lease::environment_stands_for_flags),
        case!(plain bad_input::unknown_and_unbuilt_flags_are_refused),
        case!(plain bad_input::missing_config_is_waited_for),
        case!(plain bad_input::bad_config_is_explained_by_field),
        case!(plain bad_input::etcd_away_at_start_is_waited_for),
        case!(plain bad_input::etcd_away_later_changes_nothing),
        case!(plain bad_input::hostile_records_harm_nobody),
        case!(plain bad_input::hanging_service_manager_stalls_nothing),
        case!(plain lease::departed_peers_go_and_changed_ones_change),
        case!(plain bad_input::last_subnet_goes_to_one),
        case!(plain lease::many_start_at_once),
        case!(plain single_peers::who_meets_nobody_is_written_without_a_pass),
        case!(plain single_peers::who_meets_others_is_written_as_well),
        case!(plain lease::deleted_lease_is_claimed_again),
        case!(plain outage::packets_go_on_and_the_kernel_is_left_alone),
        case!(plain outage::a_store_that_went_back_or_forgot_takes_nothing_away),
        case!(plain outage::a_host_that_boots_meanwhile_has_connectivity),
        case!(plain outage::beyond_its_lifetime_a_lease_adds_no_pod),
        case!(plain ownership::expired_and_free_is_taken_again),
        case!(plain ownership::expired_and_taken_belongs_to_the_new_holder),
        case!(plain ownership::an_overwritten_record_is_given_up),
        case!(plain ownership::a_record_in_our_name_is_put_right),
        case!(plain ownership::a_subnet_that_is_deleted_twice_is_revoked),
        case!(plain ownership::a_hundred_race_for_the_last_subnet),
        case!(plain ownership::two_nodes_with_one_address_are_told_apart),
        case!(plain ownership::a_reservation_survives_its_use),
        case!(plain credentials::tokens_passwords_and_certificates_change_under_traffic),
        case!(plain cluster::leaders_die_and_then_the_majority),
        case!(plain hostile_records::a_thousand_bad_records_under_traffic),
        case!(plain clock::a_jump_of_the_wall_clock_moves_nothing),
        case!(plain suspend::time_asleep_counts_for_the_lease),
        case!(plain suspend::who_slept_longer_than_the_lease_takes_it_again),
        case!(plain etcd_access::plain_http_to_another_host_asks_for_a_flag),
        case!(plain etcd_access::tls_with_any_of_the_files),
        case!(plain etcd_access::password_comes_from_a_file_and_is_never_told),
        case!(plain backend::host_gw_routes_by_the_nodes_themselves),
        case!(plain backend::host_gw_refuses_an_address_that_is_not_its_own),
        case!(plain backend::direct_routing_avoids_the_tunnel_on_one_link),
        case!(plain backend::alloc_gives_a_subnet_and_touches_nothing),
        case!(plain backend::other_types_are_refused_with_what_serves_instead),
        case!(ipip backend::ipip_carries_packets_between_nodes),
        case!(ipip replaced::ipip_avoids_the_tunnel_on_one_link),
        case!(ipip replaced::of_ipip_is_the_only_sender),
        case!(plain replaced::of_vxlan_is_the_only_sender),
        case!(wireguard replaced::of_wireguard_has_another_key),
        case!(wireguard wireguard::every_packet_is_encrypted_and_no_restart_is_felt),
        case!(wireguard wireguard::peers_without_a_key_get_nothing),
        case!(wireguard wireguard::both_families_in_devices_of_their_own),
        case!(wireguard wireguard::both_families_in_one_device_over_ipv6),
        case!(wireguard wireguard::both_families_in_one_device_over_what_is_there),
        case!(no_wireguard wireguard::a_kernel_without_it_is_named),
        case!(plain config::changes_are_applied_or_wait_with_their_reason),
        case!(plain config::hangup_reads_everything_anew),
        case!(plain ctl::doctor_finds_what_a_node_lacks),
        case!(plain ctl::each_proxy_is_removed_by_its_own_means),
        case!(plain ctl::a_reservation_waits_for_its_node_and_outlives_it),
        case!(plain ctl::nothing_but_lease_keys_was_ever_written_where_flannel_looks),
        case!(plain beside_flannel::nothing_else_ever_stood_where_flannel_looks),
        case!(plain ctl_view::subnets_in_every_form),
        case!(plain ctl_view::changes_are_told_while_they_happen),
        case!(plain ctl_view::a_config_is_checked_beside_what_runs),
        case!(plain ctl_view::doctor_follows_the_routes_of_host_gw),
        case!(plain ctl_view::doctor_knows_the_device_of_udp),
        case!(ipip ctl_view::doctor_knows_the_device_of_ipip),
        case!(wireguard ctl_view::doctor_knows_the_keys_of_wireguard),
        case!(plain look::peers_and_differences_are_told_without_the_daemon),
        case!(plain explain::an_address_is_explained_wherever_it_lies),
        case!(plain explain::an_address_of_ipv6_is_explained_alike),
        case!(plain take_over::old_chains_are_removed_and_nothing_else),
        case!(plain take_over::a_chain_that_keeps_pods_connected_stays),
        case!(plain take_over::a_firewall_that_rejects_pods_is_named),
        case!(plain take_over::packets_with_the_mark_of_kube_proxy_are_left_to_it),
        case!(plain look::a_host_that_is_no_node_is_told_so),
        case!(plain look::peers_of_host_gw),
        case!(plain look::peers_of_udp),
        case!(ipip look::peers_of_ipip),
        case!(wireguard look::peers_of_wireguard),
        case!(plain dual_stack::both_families_reach_across_nodes),
        case!(plain dual_stack::lease_devices_and_subnet_file_are_flannels),
        case!(plain dual_stack::restart_and_repair_lose_nothing),
        case!(plain dual_stack::a_peer_without_ipv6_is_reached_by_ipv4),
        case!(plain dual_stack::ipv6_alone_asks_for_its_switch_and_works),
        case!(plain dual_stack::ipv4_that_becomes_dual_stack_at_a_restart),
        case!(plain overlay::three_nodes_converge),
        case!(plain overlay::every_pod_reaches_every_pod),
        case!(plain overlay::tcp_flows_across_nodes),
        case!(plain overlay::masquerade_hides_pods_from_outside),
        case!(plain overlay::without_ip_masq_the_plugin_masquerades),
        case!(plain overlay::exempt_destinations_see_the_pod_and_nobody_else_does),
        case!(plain overlay::a_blackhole_keeps_strays_on_the_node),
        case!(plain overlay::rules_live_in_our_own_table),
        case!(plain overlay::outer_checksums_are_a_choice),
        case!(plain overlay::restart_adopts),
        case!(plain overlay::crash_loses_no_packet),
        case!(plain overlay::stop_leaves_the_data_path),
        case!(plain overlay::removed_objects_come_back),
        case!(plain overlay::foreign_objects_stay),
        case!(plain kills::vxlan_loses_nothing_in_twenty).within(KILLS),
        case!(plain kills::host_gw_loses_nothing_in_twenty).within(KILLS),
        case!(ipip kills::ipip_loses_nothing_in_twenty).within(KILLS),
        case!(wireguard kills::wireguard_loses_nothing_in_twenty).within(KILLS),
        case!(plain by_hand::vxlan_beside_a_node_set_up_by_hand),
        case!(plain by_hand::direct_routing_beside_a_node_set_up_by_hand),
        case!(plain by_hand::host_gw_beside_a_node_set_up_by_hand),
        case!(plain forged::vxlan_packets_reach_nobody),
        case!(plain forged::without_the_filter_they_arrive),
        case!(plain forged::the_filter_follows_the_peers),
        case!(ipip forged::ipip_packets_reach_nobody),
        case!(plain repair::every_kind_of_object_comes_back),
        case!(wireguard repair::every_kind_of_object_of_wireguard_comes_back),
        case!(plain repair::a_storm_of_changes_hides_nothing),
        case!(plain repair::settings_come_back_by_event),
        case!(plain repair::who_goes_on_fighting_is_named),
        case!(plain host::vxlan_follows),
        case!(plain host::host_gw_follows),
        case!(plain host::udp_follows),
        case!(ipip host::ipip_follows),
        case!(wireguard host::wireguard_follows),
        case!(plain host::what_flags_pin_stays),
        case!(plain host::ipv6_follows_as_well),
        case!(plain host::a_route_in_our_place_stays_behind_ours),
        case!(plain udp::restarts_lose_no_packet),
        case!(plain udp::device_route_and_lease_are_flannels),
        case!(plain udp::tcp_udp_and_icmp_beside_a_plain_peer),
        case!(plain udp::bulk_transfer_beside_a_plain_peer),
        case!(plain udp::a_hop_is_counted_once_and_told_when_it_was_the_last),
        case!(plain udp::a_service_manager_keeps_the_descriptors),
        case!(plain udp::a_node_behind_a_nat_is_reached),
        case!(plain udp::both_families_travel_over_one_device),
        case!(plain udp::deleted_device_comes_back),
        case!(plain udp::hostile_datagrams_harm_nobody),
        case!(plain udp::a_peer_that_floods_does_not_starve_the_others),
        case!(plain udp::a_smaller_hop_on_the_way_is_learned),
        case!(plain udp::errors_come_from_the_node_in_both_families),
        case!(plain udp::dscp_and_ecn_are_carried),
        case!(plain udp::packets_for_others_are_counted_and_go_nowhere),
        case!(plain udp::every_byte_beside_a_plain_peer_is_the_models),
        case!(plain udp::every_fallback_carries_both_families),
        case!(plain udp::another_backend_lets_the_device_go),
        case!(plain cleanup::vxlan_leaves_a_virgin_host),
        case!(plain cleanup::host_gw_leaves_a_virgin_host),
        case!(plain cleanup::udp_leaves_a_virgin_host),
        case!(ipip cleanup::ipip_leaves_a_virgin_host),
        case!(wireguard cleanup::wireguard_leaves_a_virgin_host),
        case!(plain cni::add_wires_a_pod),
        case!(plain cni::results_have_the_layout_of_their_version),
        case!(plain cni::addresses_are_kept_as_host_local_keeps_them),
        case!(plain cni::del_is_repeatable_and_needs_no_namespace),
        case!(plain cni::missing_subnet_file_says_try_again),
        case!(plain cni::bad_calls_are_refused_by_code),
        case!(plain cni::second_add_is_refused_and_harms_nothing),
        case!(plain cni::exhausted_subnet_is_said),
        case!(plain cni::many_adds_at_once),
        case!(plain cni::del_is_finished_by_the_daemon),
        case!(plain cni::pods_cannot_send_to_tunnels_on_other_ports),
        case!(vlans vlan::containers_are_in_their_vlan_with_a_gateway_of_its_own),
        case!(vlans vlan::a_trunk_carries_its_tags_and_no_others),
        case!(vlans vlan::a_subnet_is_in_one_vlan),
        case!(no_vlans vlan::a_kernel_without_them_is_named),
        case!(plain crash::add_killed_anywhere_is_undone_by_del),
        case!(plain crash::del_killed_anywhere_is_finished_by_del),
        case!(plain crash::add_killed_anywhere_is_undone_by_gc),
        case!(plain crash::del_killed_anywhere_is_finished_by_gc),
        case!(plain crash::del_handed_over_and_killed_anywhere_is_finished_by_del),
        case!(plain crash::del_handed_over_and_killed_anywhere_is_finished_by_gc),
        case!(plain crash::another_delegate_killed_anywhere_is_finished_by_del),
        case!(plain crash::a_thousand_pods_a_hundred_at_a_time),
        case!(plain crash::a_thousand_pods_beside_a_daemon),
        case!(plain crash::vanishing_namespace_leaves_nothing),
        case!(plain crash::unread_result_is_taken_back),
        case!(plain clients::containerd_runs_pods_as_kubernetes_does),
        case!(plain clients::containerd_pods_come_and_go_at_once),
        case!(plain clients::ctr_runs_a_container),
        case!(plain clients::podman_runs_containers),
        case!(plain probes::del_without_namespace_removes_veth_and_rules),
        case!(plain probes::exhausted_pool_leaves_nothing_and_del_succeeds),
        case!(plain probes::bridge_without_hardware_address_works),
        case!(plain probes::del_succeeds_after_an_add_that_never_masqueraded),
        case!(plain probes::given_default_route_and_default_gateway_agree),
        case!(plain probes::empty_lease_file_is_no_lost_address),
        case!(plain probes::changed_subnet_serves_new_pods_and_keeps_old_ones),
        case!(plain probes::del_without_namespace_takes_the_address_from_a_living_pod),
        case!(plain probes::lost_leases_give_no_address_twice),
        case!(plain probes::check_sees_lost_rules),
        case!(plain probes::changed_mtu_reaches_the_bridge),
        case!(plain probes::own_namespace_is_never_touched),
        case!(plain kube::kubectl_finds_an_api_server),
        case!(plain kube::services_are_followed_and_bad_ones_named),
        case!(no_ipvs kube_move::ten_thousand_services_fit_into_little_memory),
        case!(no_ipvs kube_move::objects_of_kubernetes_move_into_etcd),
        case!(no_ipvs kube_addresses::addresses_of_servers_and_nodes_are_refused),
        Case::ipvs(
            "kube_addresses::addresses_of_servers_and_nodes_are_refused_through_ipvs",
            kube_addresses::addresses_of_servers_and_nodes_are_refused,
        ),
        case!(ipvs kube::pods_answer_for_services_of_the_api_server),
        case!(no_ipvs kube::zones_and_what_is_not_ours),
        Case::ipvs(
            "kube::zones_and_what_is_not_ours_through_ipvs",
            kube::zones_and_what_is_not_ours,
        ),
        case!(plain hostile::a_thousand_inputs_do_no_harm).within(300),
        case!(plain service_view::what_nftables_carries_is_shown),
        case!(ipvs service_view::what_ipvs_carries_is_shown),
        case!(plain service_view::explains_where_packets_go),
        case!(plain service_view::programming_latency_is_measured),
        case!(plain endpoint::dies_with_its_registrant),
        case!(plain endpoint::outlives_etcd_and_drains),
        case!(no_ipvs service::kernel_without_ipvs_is_said_once),
        case!(no_ipvs service::settings_of_the_host_are_made_as_asked_for),
        Case::ipvs(
            "service::settings_of_the_host_with_ipvs",
            service::settings_of_the_host_are_made_as_asked_for,
        ),
        case!(ipvs service::table_is_what_operators_expect),
        case!(ipvs service::answers_come_from_pods_on_both_nodes),
        case!(ipvs service::unknown_ports_are_refused),
        case!(ipvs service::endpoints_come_and_go),
        case!(ipvs service::foreign_virtual_servers_stay),
        case!(ipvs service::restart_adopts),
        case!(ipvs ipvs::virtual_servers_of_others_keep_every_byte),
        case!(ipvs ipvs::only_virtual_servers_grow_with_services),
        case!(ipvs ipvs::rules_stand_before_routes_and_virtual_servers),
        case!(ipvs ipvs::connections_drain_within_a_bound_that_a_crash_does_not_end),
        case!(ipvs ipvs::flows_to_an_endpoint_that_is_gone_end_and_no_others),
        case!(ipvs ipvs::addresses_that_are_taken_are_refused_by_name),
        case!(ipvs ipvs::what_others_change_is_repaired),
        case!(ipvs ipvs::a_thousand_changes_a_second_end_in_the_exact_state),
        case!(ipvs ipvs::ports_of_the_host_do_not_answer_on_virtual_addresses),
        case!(ipvs ipvs::every_scheduler_serves_or_is_named),
        case!(ipvs ipvs::services_change_hands_under_traffic),
    ];
    all.extend(services::cases());
    all
}
