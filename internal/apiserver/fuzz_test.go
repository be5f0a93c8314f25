package apiserver

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
)

// noStores has no store. It notes references to containers.
type noStores struct{ asked []string }

func (n *noStores) IsContainer(ref string) bool { return layerref.Is(ref) }

func (n *noStores) Open(context.Context) (*layerstore.Store, func(), error) {
	return nil, nil, fault.New(errdefs.ErrNotFound, "no store")
}

func (n *noStores) OpenContainers(ctx context.Context, refs []string) (*layerstore.Store, func(), error) {
	n.asked = append(n.asked, refs...)
	return n.Open(ctx)
}

func (n *noStores) LimitContainer(ctx context.Context, ref string, _ uint64) error {
	_, _, err := n.OpenContainers(ctx, []string{ref})
	return err
}

// FuzzRequest: whatever a member sends, the answer is well-formed, and no engine is asked about containers of others.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][3]string{
		{"GET", "/v1/info", ""}, {"POST", "/v1/layers/base/forks", `{"name": "ci.a", "count": 3, "ttl": "1h", "labels": {"a": "b"}}`},
		{"POST", "/v1/layers/fork:ci.a/merge", `{"strategy": "ours", "paths": ["/a"]}`}, {"GET", "/v1/layers/docker:db/changes?since=base", ""},
		{"PUT", "/v1/layers/ci.a/limit", `{"size": "1G"}`}, {"PUT", "/v1/layers/docker:web/limit", `{"size": "1G"}`}, {"DELETE", "/v1/layers/ci.a/snapshots/x", ""}, {"GET", "/v1/layers/%2e%2e", ""},
		{"POST", "/v1/layers/ci.a/promote", `{"to": "docker://x/y"}`}, {"GET", "/v1/layers/containerd:a%2Fb/export?format=oci-archive", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, method, target, body string) {
		r, err := http.NewRequest(method, "http://cowshed", strings.NewReader(body))
		if err != nil {
			return
		}
		if r.URL, err = r.URL.Parse(target); err != nil || r.URL.Host != "cowshed" {
			return
		}
		stores := &noStores{}
		server := New(testOptions(stores))
		peer := peerOfUser(alice)
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r.WithContext(context.WithValue(t.Context(), peerKey{}, peer)))
		switch {
		case w.Code == http.StatusOK, w.Code == http.StatusNoContent:
		case w.Code >= 500:
			t.Fatalf("%s %s: %d %s", method, target, w.Code, w.Body)
		default:
			e := new(api.Error)
			if err := json.Unmarshal(w.Body.Bytes(), e); err != nil || e.Kind.Status() != w.Code {
				t.Fatalf("%s %s: %d %s: %v", method, target, w.Code, w.Body, err)
			}
		}
		for _, ref := range stores.asked {
			if layer := layerref.Layer(ref); layer != "docker:web" && !strings.HasPrefix(layer, "fork:ci.") {
				t.Fatalf("asked for %q", ref)
			}
		}
		if len(server.requests.senders) > 0 {
			t.Fatal("a request is still under way")
		}
	})
}
