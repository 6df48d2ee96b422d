//! All that is wrong with rules or a policy, where a CHECK says the first thing only (`sql/61_review.sql`).

use ext_registry_core::policy::PolicyDocument;
use ext_registry_core::rules::RuleSet;
use pgrx::{IntoDatum, pg_sys};

use crate::datum::Args;
use crate::{registry, tuple};

/// One row for each problem: where in the document, what, and what would do. None for a document that cannot be read at all,
/// of which the CHECK says why.
fn problems<E>(args: Args, find: fn(&serde_json::Value) -> Vec<E>, columns: fn(E) -> [String; 3]) -> pg_sys::Datum {
    let rows = tuple::Rows::new(args, registry::row_type(args));
    if let Some(Ok(document)) = args.json(0) {
        for error in find(&document) {
            rows.push(&columns(error).map(IntoDatum::into_datum));
        }
    }
    rows.finish(args)
}

crate::pg_function! {
    /// `_ext_rules_problems(rules)`.
    _ext_rules_problems, pg_finfo__ext_rules_problems, |args| problems(args, RuleSet::problems, |error| {
        let problem = format!("invalid routing_rules: {error}");
        let hint = error.hint().to_owned();
        [error.key, problem, hint]
    })
}

crate::pg_function! {
    /// `_ext_policy_problems(document)`.
    _ext_policy_problems, pg_finfo__ext_policy_problems, |args| problems(args, PolicyDocument::problems, |error| {
        let problem = format!("invalid policy document: {error}");
        let hint = error.hint().to_owned();
        [error.path, problem, hint]
    })
}
