//! Budgets that people make, change and take away while the gateway runs, beside those of the file.

use super::{Edit, ManageError, Source, bounded};
use crate::Policies;
use crate::accounts::BudgetView;
use crate::agent::random_hex;
use crate::created::{Book, budget_body, is_alike};
use serde_json::{Value, json};
use std::sync::Arc;
use tollkeeper_config::{BudgetConfig, Scope};

/// More budgets are not made.
const MOST_BUDGETS: usize = 10_000;

/// A budget, where it comes from, and how it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetEntry {
    /// Its id, `bud_…`; `None` for the file's.
    pub id: Option<Arc<str>>,
    /// Where it was defined.
    pub source: Source,
    /// The budget.
    pub rule: BudgetConfig,
    /// How it stands; `None` when the file has one like it, which is the one that counts.
    pub view: Option<BudgetView>,
}

impl Policies {
    /// All budgets as they stand, those of runs left out, and those made at run time that the file hides.
    pub fn budget_entries(&self) -> Vec<BudgetEntry> {
        let views = self.all_budgets();
        let book = self.0.book();
        let hidden = book.budgets.iter().filter(|(_, rule)| book.hides_budget(rule));
        let hidden: Vec<BudgetEntry> = hidden
            .map(|(id, rule)| BudgetEntry { id: Some(id.clone()), source: Source::Api, rule: rule.clone(), view: None })
            .collect();
        let made =
            |rule: &BudgetConfig| book.budgets.iter().find(|(_, made)| *made == rule && !book.hides_budget(rule));
        let standing = views.into_iter().map(|view| {
            let id = made(&view.rule).map(|(id, _)| id.clone());
            let source = if id.is_some() { Source::Api } else { Source::File };
            BudgetEntry { id, source, rule: view.rule.clone(), view: Some(view) }
        });
        let mut all: Vec<BudgetEntry> = standing.chain(hidden).collect();
        all.sort_by(|a, b| (&a.rule.owner, a.rule.window, &a.id).cmp(&(&b.rule.owner, b.rule.window, &b.id)));
        all
    }

    /// Makes a budget; what its owner has spent in the window counts.
    ///
    /// # Errors
    /// There is one like it, or too many, or the ledger cannot record it.
    pub async fn create_budget(&self, actor: &str, rule: BudgetConfig) -> Result<BudgetEntry, ManageError> {
        let _alone = self.0.changing.lock().await;
        {
            let book = self.0.book();
            bounded(book.budgets.len(), MOST_BUDGETS)?;
            book.unlike_others(&rule, None)?;
        }
        let id: Arc<str> = format!("bud_{}", random_hex::<8>()).into();
        self.keep_budget(actor, id, "created", rule).await
    }

    /// Puts what `change` makes of a budget that was made at run time in its place. What is spent and leased stays.
    ///
    /// # Errors
    /// `change` refuses, there is no such budget, or one like the new one, or the ledger cannot record it.
    pub async fn change_budget<E: From<ManageError>>(
        &self,
        actor: &str,
        id: &str,
        change: impl FnOnce(&BudgetConfig) -> Result<BudgetConfig, E>,
    ) -> Result<BudgetEntry, E> {
        let _alone = self.0.changing.lock().await;
        let old = self.0.book().made_budget(id)?.clone();
        let rule = change(&old)?;
        self.0.book().unlike_others(&rule, Some(id))?;
        Ok(self.keep_budget(actor, id.into(), "changed", rule).await?)
    }

    /// Takes a budget away that was made at run time.
    ///
    /// # Errors
    /// There is no such budget, or the ledger cannot record it.
    pub async fn remove_budget(&self, actor: &str, id: &str) -> Result<(), ManageError> {
        let _alone = self.0.changing.lock().await;
        self.0.book().made_budget(id)?;
        let edit = Edit { budgets: vec![(id.into(), None)], ..Edit::default() };
        Ok(self.commit(actor, &format!("budget/{id}"), json!({"change": "removed"}), edit).await?)
    }

    async fn keep_budget(
        &self,
        actor: &str,
        id: Arc<str>,
        change: &str,
        rule: BudgetConfig,
    ) -> Result<BudgetEntry, ManageError> {
        let mut note: Value = serde_json::from_str(&budget_body(&rule)).unwrap_or_default();
        note["change"] = change.into();
        let edit = Edit { budgets: vec![(id.clone(), Some(rule.clone()))], ..Edit::default() };
        self.commit(actor, &format!("budget/{id}"), note, edit).await?;
        let view = self.budgets(&rule.owner).into_iter().find(|view| view.rule == rule);
        Ok(BudgetEntry { id: Some(id), source: Source::Api, rule, view })
    }
}

impl Book {
    fn made_budget(&self, id: &str) -> Result<&BudgetConfig, ManageError> {
        self.budgets.get(id).ok_or_else(|| ManageError::NoBudget(id.to_owned()))
    }

    /// Whether a budget would be the only one of its owner, window and measure.
    fn unlike_others(&self, rule: &BudgetConfig, own: Option<&str>) -> Result<(), ManageError> {
        let owner = rule.owner.clone();
        if owner.scope == Scope::Run {
            return Err(ManageError::OfRun(owner.id));
        }
        if self.hides_budget(rule) {
            return Err(ManageError::BudgetInFile { owner });
        }
        match self.budgets.iter().find(|(id, other)| Some(&***id) != own && is_alike(other, rule)) {
            Some((id, _)) => Err(ManageError::BudgetExists { owner, id: id.clone() }),
            None => Ok(()),
        }
    }
}
