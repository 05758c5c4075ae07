//! A plugin is removed: what it has waiting stays on disk, and nothing comes to it any more.

use super::Office;

impl Office {
    pub(super) fn forget_instance(&mut self, instance: u32) {
        let trunks = self.trunks.iter();
        let its = trunks.filter(|(_, trunk)| trunk.loaded.number == instance);
        let its: Vec<_> = its.map(|(id, _)| *id).collect();
        for trunk in its {
            self.down(trunk);
        }
        let outs: Vec<_> = self.outs.keys().copied().collect();
        for out in outs.into_iter().filter(|out| out.0.instance == instance) {
            self.forget_out(out);
        }
        self.forget_ins(instance);
        self.end_fetches(|home| home.instance == instance);
        self.forget_routes(instance);
        self.asked.retain(|(home, _), _| home.instance != instance);
        self.cursors.retain(|home, _| home.instance != instance);
        self.last_trunks.retain(|out, _| out.0.instance != instance);
    }
}
