//! A folder of fixtures: `extensions/*.json` and `policies/<tenant>/<policy>.json`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::ident::check_id;
use ext_registry_core::policy::PolicyDocument;
use serde_json::{Value as Json, json};

use crate::exit::{Exit, Kind};
use crate::machine::policies::PolicyKey;

/// What a folder holds, checked.
pub struct Fixtures {
    /// Extensions with their raw documents, by file name.
    pub extensions: Vec<(Json, ExtensionDocument)>,
    /// Policies.
    pub policies: HashMap<PolicyKey, Rc<PolicyDocument>>,
    policy_documents: Vec<(PolicyKey, Json)>,
}

/// What is wrong in a folder: one line per file.
pub type Problems = Vec<String>;

fn json_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    Ok(files)
}

fn read_json(path: &Path) -> Result<Json, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: not valid JSON: {e}", path.display()))
}

impl Fixtures {
    /// Reads a folder; the first problem is the error.
    pub fn read(folder: &Path) -> Result<Self, Exit> {
        let (fixtures, problems) = Self::inspect(folder);
        match problems.into_iter().next() {
            None => Ok(fixtures),
            Some(problem) => Err(Exit::new(Kind::Fixtures, problem)),
        }
    }

    /// Reads what can be read, and says what is wrong with the rest.
    pub fn inspect(folder: &Path) -> (Self, Problems) {
        let mut found = Self {
            extensions: Vec::new(),
            policies: HashMap::new(),
            policy_documents: Vec::new(),
        };
        let mut problems = Problems::new();
        match json_files(&folder.join("extensions")) {
            Err(problem) => problems.push(problem),
            Ok(files) => {
                for path in files {
                    if let Err(problem) = found.add_extension(&path) {
                        problems.push(problem);
                    }
                }
            }
        }
        let tenants = std::fs::read_dir(folder.join("policies"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let mut tenants: Vec<PathBuf> = tenants.map(|e| e.path()).filter(|p| p.is_dir()).collect();
        tenants.sort();
        for tenant in tenants {
            for path in json_files(&tenant).unwrap_or_default() {
                if let Err(problem) = found.add_policy(&tenant, &path) {
                    problems.push(problem);
                }
            }
        }
        (found, problems)
    }

    fn add_extension(&mut self, path: &Path) -> Result<(), String> {
        let raw = read_json(path)?;
        let document = ExtensionDocument::parse(&raw).map_err(|e| problem(path, &e))?;
        if self.extensions.iter().any(|(_, other)| other.id == document.id) {
            return Err(format!(
                "{}: extension \"{}\" is there twice",
                path.display(),
                document.id
            ));
        }
        self.extensions.push((raw, document));
        Ok(())
    }

    fn add_policy(&mut self, tenant: &Path, path: &Path) -> Result<(), String> {
        let name = |p: Option<&std::ffi::OsStr>| p.and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let key = (name(tenant.file_name()), name(path.file_stem()));
        for (what, id) in [("tenant_id", &key.0), ("policy_id", &key.1)] {
            check_id(what, id).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let raw = read_json(path)?;
        let policy = PolicyDocument::parse(&raw).map_err(|e| problem(path, &e))?;
        self.policies.insert(key.clone(), Rc::new(policy));
        self.policy_documents.push((key, raw));
        Ok(())
    }

    /// As one document for `ext_import`.
    pub fn document(&self) -> Json {
        json!({
            "extensions": self.extensions.iter().map(|(raw, _)| raw).collect::<Vec<_>>(),
            "policies": self.policy_documents.iter().map(|((tenant, policy), document)| {
                json!({"tenant_id": tenant, "policy_id": policy, "enabled": true, "document": document})
            }).collect::<Vec<_>>(),
        })
    }

    /// Policies that name extensions which are not there.
    pub fn dangling(&self) -> Problems {
        let mut problems = Problems::new();
        for ((tenant, id), _) in &self.policy_documents {
            let Some(policy) = self.policies.get(&(tenant.clone(), id.clone())) else {
                continue;
            };
            for name in policy.extension_ids() {
                if !self.extensions.iter().any(|(_, document)| document.id == name) {
                    problems.push(format!("policy {tenant}/{id}: no extension \"{name}\" in this folder"));
                }
            }
        }
        problems
    }
}

fn problem(path: &Path, error: &ext_registry_core::fields::DocumentError) -> String {
    if error.hint().is_empty() {
        format!("{}: {error}", path.display())
    } else {
        format!("{}: {error} ({})", path.display(), error.hint())
    }
}
