package daemons

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cowshed/cowshed/internal/enginelimits/kubelet/kubelettest"
)

// TestKubeletPods: containers without an annotation have the limit of their pod, which the kubelet knows. Without the kubelet they
// start all the same, and get it later.
func TestKubeletPods(t *testing.T) {
	var away atomic.Bool
	k := kubelettest.Start(t, func(w http.ResponseWriter, _ *http.Request) {
		if away.Load() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		const pod = `{"metadata": {"uid": %q}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "4Mi"}}}]}}`
		fmt.Fprintf(w, `{"items": [`+pod+`, `+pod+`, `+pod+`]}`, "web", "annotated", "late")
	})
	settings := []string{
		"nri = true", "kubelet_pods = true", fmt.Sprintf("kubelet_address = %q", k.Address),
		fmt.Sprintf("kubelet_ca = %q", k.CA), fmt.Sprintf("kubelet_credential = %q", k.Credential),
	}
	inEachSnapshotter(t, []snapshotter{withNRI(settings...)}, func(t *testing.T, ctx context.Context, h containerdHost) {
		kubelet, store := newKubelet(t, ctx, h)
		ctx = store.Context(ctx)
		waitConnected(t, ctx, h.cowshed, "nri")
		waitConnected(t, ctx, h.cowshed, "kubelet")
		var pods []*pod
		start := func(name string, annotations map[string]string) (*pod, string) {
			t.Helper()
			p := kubelet.run(ctx, podNamed(name), annotations)
			pods = append(pods, p)
			return p, p.start(ctx, "c")
		}
		requireWrites := func(p *pod, id, want string) {
			t.Helper()
			stdout, _ := p.exec(ctx, id, write6)
			assert.Contains(t, stdout, want)
		}
		web, id := start("web", nil)
		requireSnapshotLimit(t, ctx, store, id, 4) // it is there already, if the kubelet has answered in half a second
		requireWrites(web, id, overLimit)
		annotated, id := start("annotated", map[string]string{sizeOfPods: "12M"})
		requireWrites(annotated, id, fits)
		free, id := start("free", nil)
		requireWrites(free, id, fits)

		// Another pod than those of the last answer.
		h.cowshed.Kill()
		away.Store(true)
		h.cowshed.Start()
		waitConnected(t, ctx, h.cowshed, "nri")
		requireConnected(t, ctx, store)
		late, id := start("late", nil)
		requireWrites(late, id, fits)
		requireDoctor(t, ctx, h.cowshed, "kubelet is not connected since")
		requireDoctor(t, ctx, h.cowshed, "container default/late/c of kubelet is without the limit that it asks for")
		requireOutcomes(t, ctx, h.cowshed, "kubelet", "failed", 1)
		away.Store(false)
		requireSnapshotLimit(t, ctx, store, id, 4)
		requireWrites(late, id, overLimit)
		requireDoctor(t, ctx, h.cowshed, "kubelet is connected since")

		for _, p := range pods {
			p.remove(ctx)
		}
		requireCleared(t, ctx, store)
	})
}
