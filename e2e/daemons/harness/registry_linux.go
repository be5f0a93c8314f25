package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
)

// StartRegistry runs Debian's docker-registry on a port of the loopback interface until the test ends. It returns
// the address, HOST:PORT, with which references of its images begin.
func (h *Host) StartRegistry() string {
	h.t.Helper()
	// The kernel chooses the port, which the registry tells in its log.
	config := h.write("registry.yml", fmt.Sprintf(`version: 0.1
log:
  level: info
  formatter: text
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %s
  delete:
    enabled: true
http:
  addr: 127.0.0.1:0
`, h.RegistryDir()))
	var address string
	h.Start(Spec{
		Name:      "registry",
		Program:   filepath.Join(h.Programs.Debian, "usr/bin/docker-registry"),
		Args:      []string{"serve", config},
		Env:       []string{path(), "HOME=" + h.Dir, "OTEL_TRACES_EXPORTER=none"},
		NoHandler: true,
		Ready: func(ctx context.Context) error {
			output, err := lastRun(filepath.Join(h.Dir, "registry.log"))
			if err != nil {
				return err
			}
			if address, err = listening(output); err != nil {
				return err
			}
			return getOK(ctx, "http://"+address+"/v2/")
		},
	})
	return address
}

// RegistryDir is where the registry of StartRegistry keeps its data.
func (h *Host) RegistryDir() string { return h.dir(h.Dir, "registry") }

var listeningLine = regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)

// listening returns the address that a registry says it listens on.
func listening(output string) (string, error) {
	found := listeningLine.FindStringSubmatch(output)
	if found == nil {
		return "", errors.New("the registry does not say yet on which address it listens")
	}
	return found[1], nil
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
