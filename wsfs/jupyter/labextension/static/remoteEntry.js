// The status item of wsfs in JupyterLab: "saved 4 s ago" or "12 MB unsaved", and a button that saves now.
//
// What JupyterLab loads of an extension is a container of webpack's module federation: init() is handed the modules that
// JupyterLab shares, get() returns the extension. That is little enough to be written by hand, so this file is what the
// browser runs: there is nothing to build. docs/DECISIONS.md says more.
(() => {
  'use strict';

  const NAME = 'wsfs';
  const ASK_SECONDS = 5;
  const SELDOM_SECONDS = 60; // where there is no workspace, or no answer
  let shared;

  /** A module that JupyterLab shares, in its newest version, as webpack itself takes singletons. */
  async function use(name) {
    const versions = shared[name] ?? {};
    const [newest] = Object.keys(versions).sort((a, b) => b.localeCompare(a, undefined, { numeric: true }));
    if (newest === undefined) {
      throw new Error(`wsfs: this version of JupyterLab does not share ${name}`);
    }
    return (await versions[newest].get())();
  }

  // --- words: as `wsfs status` has them (wsfs/cli/output.py)

  function size(count) {
    for (const unit of ['B', 'kB', 'MB', 'GB']) {
      if (count < 1000) {
        return `${unit === 'B' || count >= 100 ? count.toFixed(0) : count.toFixed(1)} ${unit}`;
      }
      count /= 1000;
    }
    return `${count.toFixed(1)} TB`;
  }

  function duration(seconds) {
    for (const [limit, unit, step] of [[120, 's', 1], [7200, 'min', 60], [172800, 'h', 3600]]) {
      if (seconds < limit) {
        return `${Math.floor(seconds / step)} ${unit}`;
      }
    }
    return `${Math.floor(seconds / 86400)} d`;
  }

  const files = count => (count === 1 ? '1 file' : `${count.toLocaleString('en')} files`);

  /** What the item says of a state, `age` seconds after the last save, and whether that is bad news. */
  function describe(state, age) {
    if (state.state === 'ERROR') {
      return { text: 'workspace not available', bad: true };
    }
    const unsaved = state.unsaved_bytes ? size(state.unsaved_bytes) : state.unsaved_files ? files(state.unsaved_files) : '';
    if (state.state === 'SYNC_FAILED') {
      return { text: unsaved ? `save failed, ${unsaved} unsaved` : 'save failed', bad: true };
    }
    if (unsaved) {
      return { text: `${unsaved} unsaved`, bad: false };
    }
    return { text: age === null ? 'workspace' : `saved ${duration(age)} ago`, bad: false };
  }

  function details(state, age) {
    const lines = [`Workspace on ${state.mountpoint}: ${state.state}`];
    if (state.reason) {
      lines.push(state.reason);
    }
    if (state.unsaved_files !== undefined) {
      lines.push(`Not saved: ${files(state.unsaved_files)}, ${size(state.unsaved_bytes)}`);
    }
    if (age !== null) {
      lines.push(`Last save: ${duration(age)} ago, save point #${state.seq}`);
    }
    return lines.join('\n');
  }

  // --- the item

  /** The item's elements, and what it shows. `ask` and `save` return promises of what the server says. */
  class Item {
    constructor(ask, save, complain) {
      this.ask = ask;
      this.save = save;
      this.complain = complain;
      this.state = null;
      this.saving = false;

      this.node = document.createElement('div');
      this.node.className = 'wsfs-status';
      this.node.style.cssText = 'display: flex; align-items: center; gap: 4px;';
      this.label = document.createElement('span');
      this.label.className = 'jp-StatusBar-TextItem wsfs-label';
      this.button = document.createElement('button');
      this.button.className = 'wsfs-save';
      this.button.textContent = 'save now';
      this.button.title = 'Send all files of the workspace to the store now. Save open documents before.';
      this.button.style.cssText =
        'font: inherit; color: inherit; background: none; cursor: pointer; padding: 0 6px; line-height: 16px;' +
        'border: 1px solid var(--jp-border-color1, currentColor); border-radius: 2px;';
      this.button.addEventListener('click', () => void this.saveNow());
      this.node.append(this.label, this.button);
      this.draw();
    }

    /** Ask again and again; less often where there is nothing to see. */
    async run() {
      for (;;) {
        let pause = ASK_SECONDS;
        if (!document.hidden) {
          await this.refresh();
          pause = this.state?.state ? ASK_SECONDS : SELDOM_SECONDS;
        }
        const end = Date.now() + pause * 1000;
        while (Date.now() < end) {
          await new Promise(done => setTimeout(done, 1000));
          this.draw(); // the age of the last save grows
        }
      }
    }

    async refresh() {
      try {
        this.state = await this.ask();
        this.asked = Date.now();
      } catch (error) {
        this.state = null; // the server is gone, and says so elsewhere
        console.debug('wsfs:', error);
      }
      this.draw();
    }

    async saveNow() {
      if (this.saving) {
        return;
      }
      this.saving = true;
      this.draw();
      try {
        await this.save();
      } catch (error) {
        this.complain(error.message);
      } finally {
        this.saving = false;
        await this.refresh();
      }
    }

    draw() {
      const state = this.state;
      this.node.style.visibility = state?.state ? 'visible' : 'hidden';
      if (!state?.state) {
        return;
      }
      const known = state.last_save_age ?? null;
      const age = known === null ? null : known + (Date.now() - this.asked) / 1000;
      const { text, bad } = describe(state, age);
      this.label.textContent = this.saving ? 'saving…' : text;
      this.label.style.color = bad ? 'var(--jp-error-color1, red)' : '';
      this.label.title = details(state, age);
      this.button.disabled = this.saving || state.state === 'ERROR';
      this.button.hidden = Boolean(state.read_only);
    }
  }

  // --- the extension

  async function extension() {
    const [{ IStatusBar }, { ServerConnection }, { URLExt }, { Widget }, { Notification }] = await Promise.all(
      ['@jupyterlab/statusbar', '@jupyterlab/services', '@jupyterlab/coreutils', '@lumino/widgets', '@jupyterlab/apputils'].map(use)
    );

    function activate(app, statusBar) {
      const settings = app.serviceManager.serverSettings;

      async function request(name, method) {
        const url = URLExt.join(settings.baseUrl, NAME, name);
        const response = await ServerConnection.makeRequest(url, { method, cache: 'no-store' }, settings);
        const answer = await response.json().catch(() => ({}));
        if (!response.ok) {
          throw new Error(answer.message ?? `the server answered ${response.status}`);
        }
        return answer;
      }

      const item = new Item(
        () => request('status', 'GET'),
        () => request('save', 'POST'),
        message => Notification.error(`Not saved: ${message}`, { autoClose: false })
      );
      const widget = new Widget({ node: item.node });
      widget.id = 'wsfs-status';
      if (statusBar) {
        statusBar.registerStatusItem('wsfs:status', { item: widget, align: 'left', rank: 100 });
      } else {
        app.shell.add(widget, 'menu', { rank: 900 }); // Jupyter Notebook has no status bar
      }
      app.commands.addCommand('wsfs:save', { label: 'Save the workspace now', execute: () => item.saveNow() });
      void item.run();
    }

    return { id: 'wsfs:status', description: 'Whether the workspace is saved', autoStart: true, optional: [IStatusBar], activate };
  }

  const container = {
    init(scope) {
      shared = scope;
    },
    async get(module) {
      if (module !== './extension') {
        throw new Error(`wsfs: there is no module ${module}`);
      }
      const plugin = await extension();
      return () => ({ __esModule: true, default: plugin });
    }
  };
  window._JUPYTERLAB = window._JUPYTERLAB ?? {};
  window._JUPYTERLAB[NAME] = container;
})();
