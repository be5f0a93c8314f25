package harness

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
)

// StartRegistry runs Debian's docker-registry on a port of the loopback interface until the test ends. It returns
// the address, HOST:PORT, with which references of its images begin.
func (h *Host) StartRegistry() string {
	h.t.Helper()
	address := h.freeAddress()
	config := h.write("registry.yml", fmt.Sprintf(`version: 0.1
log:
  level: info
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %s
  delete:
    enabled: true
http:
  addr: %s
`, h.RegistryDir(), address))
	h.Start(Spec{
		Name:      "registry",
		Program:   filepath.Join(h.Programs.Debian, "usr/bin/docker-registry"),
		Args:      []string{"serve", config},
		Env:       []string{path(), "HOME=" + h.Dir, "OTEL_TRACES_EXPORTER=none"},
		Ready:     func(ctx context.Context) error { return getOK(ctx, "http://"+address+"/v2/") },
		NoHandler: true,
	})
	return address
}

// RegistryDir is where the registry of StartRegistry keeps its data.
func (h *Host) RegistryDir() string { return h.dir(h.Dir, "registry") }

// freeAddress returns an address that nothing listens on at this moment.
func (h *Host) freeAddress() string {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

func getOK(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}
