//! The SQL surface: the files of `sql/`, in the order they are installed.
//!
//! The functions in them are declared by hand (`language c as 'MODULE_PATHNAME', 'symbol'`), so that the surface reads as SQL;
//! this crate only has to export the symbols.

use pgrx::extension_sql_file;

extension_sql_file!("../../sql/00_checks.sql", name = "00_checks");
extension_sql_file!("../../sql/10_types.sql", name = "10_types", requires = ["00_checks"]);
extension_sql_file!(
    "../../sql/20_registry.sql",
    name = "20_registry",
    requires = ["10_types"]
);
extension_sql_file!(
    "../../sql/21_history.sql",
    name = "21_history",
    requires = ["20_registry"]
);
extension_sql_file!(
    "../../sql/22_live_state.sql",
    name = "22_live_state",
    requires = ["21_history"]
);
extension_sql_file!(
    "../../sql/30_triggers.sql",
    name = "30_triggers",
    requires = ["22_live_state"]
);
extension_sql_file!("../../sql/31_audit.sql", name = "31_audit", requires = ["30_triggers"]);
extension_sql_file!("../../sql/32_rows.sql", name = "32_rows", requires = ["31_audit"]);
extension_sql_file!("../../sql/40_decide.sql", name = "40_decide", requires = ["32_rows"]);
extension_sql_file!("../../sql/41_report.sql", name = "41_report", requires = ["40_decide"]);
extension_sql_file!("../../sql/50_health.sql", name = "50_health", requires = ["41_report"]);
extension_sql_file!(
    "../../sql/51_breaker.sql",
    name = "51_breaker",
    requires = ["50_health"]
);
extension_sql_file!("../../sql/52_lookup.sql", name = "52_lookup", requires = ["51_breaker"]);
extension_sql_file!(
    "../../sql/53_history.sql",
    name = "53_history",
    requires = ["52_lookup"]
);
extension_sql_file!("../../sql/54_top.sql", name = "54_top", requires = ["53_history"]);
extension_sql_file!(
    "../../sql/60_documents.sql",
    name = "60_documents",
    requires = ["54_top"]
);
extension_sql_file!(
    "../../sql/61_review.sql",
    name = "61_review",
    requires = ["60_documents"]
);
extension_sql_file!(
    "../../sql/62_validate.sql",
    name = "62_validate",
    requires = ["61_review"]
);
extension_sql_file!("../../sql/63_uses.sql", name = "63_uses", requires = ["62_validate"]);
extension_sql_file!("../../sql/64_restore.sql", name = "64_restore", requires = ["63_uses"]);
extension_sql_file!("../../sql/70_status.sql", name = "70_status", requires = ["64_restore"]);
extension_sql_file!("../../sql/71_repair.sql", name = "71_repair", requires = ["70_status"]);
extension_sql_file!("../../sql/72_advice.sql", name = "72_advice", requires = ["71_repair"]);
extension_sql_file!("../../sql/80_invoke.sql", name = "80_invoke", requires = ["72_advice"]);
extension_sql_file!(
    "../../sql/81_publish.sql",
    name = "81_publish",
    requires = ["80_invoke"]
);
extension_sql_file!("../../sql/90_grants.sql", name = "90_grants", requires = ["81_publish"]);
