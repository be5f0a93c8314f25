package kubelet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits/kubelet/kubelettest"
	"github.com/cowshed/cowshed/internal/testfs"
)

func clientOf(k *kubelettest.Kubelet) *Client {
	return &Client{Address: k.Address, CA: k.CA, Credential: k.Credential, patience: testfs.Patience}
}

func write(t *testing.T, text string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

const twoPods = `{"kind": "PodList", "metadata": {}, "items": [
	{"metadata": {"uid": "1", "name": "web"}, "spec": {
		"containers": [{"name": "web", "resources": {"limits": {"cpu": "1", "ephemeral-storage": "2Gi"}}}, {"name": "free", "resources": {}}],
		"initContainers": [{"name": "init", "resources": {"limits": {"ephemeral-storage": "1G"}}}],
		"ephemeralContainers": [{"name": "debug"}]}},
	{"metadata": {"uid": "2"}, "spec": {"containers": [{"name": "web"}]}}]}`

// TestAnswers: answers of the kubelet, also those that no kubelet should give.
func TestAnswers(t *testing.T) {
	many := strings.Repeat(`{"metadata": {}},`, maxPods)
	for name, c := range map[string]struct {
		answer string
		want   pods
		says   string
	}{
		"two pods":      {twoPods, pods{"1": {"web": "2Gi", "init": "1G"}, "2": nil}, ""},
		"no pods":       {`{"items": []}`, pods{}, ""},
		"null":          {`{"items": null, "metadata": {}}`, pods{}, ""},
		"no list":       {`{"kind": "Status"}`, nil, "no list of pods"},
		"items no list": {`{"items": {}}`, nil, "items are no list"},
		"other items":   {`{"items": [1]}`, nil, "cannot unmarshal"},
		"a number":      {`{"items": [{"metadata": {"uid": 1}}]}`, nil, "cannot unmarshal"},
		"HTML":          {"<html>", nil, "invalid character"},
		"empty":         {"", nil, "EOF"},
		"cut off":       {twoPods[:len(twoPods)-2], nil, "EOF"},
		"deep":          {`{"items": [` + strings.Repeat(`[`, 1<<20), nil, "depth"},
		"one id":        {`{"items": [` + many + many[:len(many)-1] + `]}`, pods{"": nil}, ""},
		"huge":          {`{"metadata": "` + strings.Repeat("1", maxAnswer), nil, "larger than 33554432 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			k := kubelettest.Start(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, c.answer) })
			list, err := clientOf(k).pods(t.Context())
			assert.Equal(t, c.want, list)
			if c.says == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.says)
			}
		})
	}
	var uids strings.Builder
	for i := range maxPods + 1 {
		fmt.Fprintf(&uids, `%s{"metadata": {"uid": "%d"}}`, strings.Repeat(",", min(i, 1)), i)
	}
	_, err := readPods(strings.NewReader(`{"items": [` + uids.String() + `]}`))
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
}

// TestSlowAnswer: an answer that does not end is given up.
func TestSlowAnswer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k := kubelettest.Start(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"items": [`)
		assert.NoError(t, http.NewResponseController(w).Flush())
		cancel()
		<-r.Context().Done()
	})
	_, err := clientOf(k).pods(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// TestCredentials: the kubelet gets the token or the certificate, which may be renewed, and nobody else does.
func TestCredentials(t *testing.T) {
	asked, certificates := 0, 0
	k := kubelettest.Start(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		certificates += len(r.TLS.PeerCertificates)
		fmt.Fprint(w, twoPods)
	})
	c := clientOf(k)
	_, err := c.pods(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(k.Credential, []byte("another"), 0o600))
	_, err = c.pods(t.Context())
	require.ErrorContains(t, err, "401 Unauthorized")
	require.NoError(t, os.WriteFile(k.Credential, []byte(kubelettest.Token), 0o600))
	_, err = c.pods(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, asked)
	require.Zero(t, certificates)

	_, text := kubelettest.Certificate(t, "cowshed")
	withCertificate := *c
	withCertificate.Credential = write(t, string(text))
	config, token, err := withCertificate.credentials()
	require.NoError(t, err)
	assert.Empty(t, token)
	assert.Len(t, config.Certificates, 1)
	_, err = withCertificate.pods(t.Context())
	require.ErrorContains(t, err, "401", "the test's kubelet wants a token")

	_, other := kubelettest.Certificate(t, strings.ToLower(k.Address))
	_, port, err := net.SplitHostPort(k.Address)
	require.NoError(t, err)
	for name, change := range map[string]func(c *Client){
		"another authority": func(c *Client) { c.CA = write(t, string(other)) },
		"another host":      func(c *Client) { c.Address = "[::ffff:127.0.0.1]:" + port; c.CA = write(t, string(other)) },
		"no authority":      func(c *Client) { c.CA = write(t, "none") },
		"no file":           func(c *Client) { c.CA = filepath.Join(t.TempDir(), "none") },
		"no token":          func(c *Client) { c.Credential = write(t, " \n") },
		"two lines":         func(c *Client) { c.Credential = write(t, "a\nb") },
		"no key": func(c *Client) {
			c.Credential = k.CA
			require.NoError(t, os.WriteFile(k.CA, []byte("-----BEGIN "), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			changed := *c
			change(&changed)
			_, err := changed.pods(t.Context())
			require.Error(t, err)
		})
	}
	assert.Equal(t, 2, asked)
}

// TestRotatedToken: a token is replaced as Kubernetes does it, by another directory under the same link. The next
// request has it.
func TestRotatedToken(t *testing.T) {
	k := kubelettest.Start(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, twoPods) })
	dir := t.TempDir()
	link := filepath.Join(dir, "..data")
	use := func(token string) {
		t.Helper()
		require.NoError(t, os.Mkdir(filepath.Join(dir, token), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, token, "token"), []byte(token), 0o600))
		require.NoError(t, os.Symlink(token, link+"_tmp"))
		require.NoError(t, os.Rename(link+"_tmp", link))
	}
	c := clientOf(k)
	c.Credential = filepath.Join(link, "token")
	use("expired")
	_, err := c.pods(t.Context())
	require.ErrorContains(t, err, "401 Unauthorized")
	use(kubelettest.Token)
	_, err = c.pods(t.Context())
	require.NoError(t, err)
}

// TestRedirect: the token goes nowhere else.
func TestRedirect(t *testing.T) {
	k := kubelettest.Start(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/pods", http.StatusFound) })
	_, err := clientOf(k).pods(t.Context())
	require.ErrorContains(t, err, "302 Found")
}

// TestServerName: the certificate must be for the host of the address, or for this node.
func TestServerName(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)
	for address, want := range map[string]string{
		"127.0.0.1:10250": strings.ToLower(host), "[::1]:1": strings.ToLower(host), "localhost:1": strings.ToLower(host),
		"node1:10250": "node1", "192.0.2.1:10250": "192.0.2.1",
	} {
		name, err := (&Client{Address: address}).serverName()
		require.NoError(t, err)
		assert.Equal(t, want, name, address)
	}
	for _, address := range []string{"", "node1", ":10250", "node1:"} {
		require.ErrorIs(t, CheckAddress(address), errdefs.ErrInvalidArgument, address)
	}
}

func TestQuantity(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "1": 1, "128974848": 128974848, "129e6": 129e6, "129M": 129e6, "129E6": 129e6, "123Mi": 123 << 20, "1.5Gi": 3 << 29,
		"100m": 1, "1500m": 2, "2k": 2000, "2Ki": 2048, ".5Ki": 512, "+1": 1, "5.": 5, "1n": 1, "7Ei": 7 << 60, "9E": 9e18, "1e-2": 1,
		"9223372036854775807": 1<<63 - 1,
	} {
		got, err := parseQuantity(s)
		require.NoError(t, err, s)
		assert.Equal(t, want, got, s)
	}
	for _, s := range []string{
		"", "-1", "1K", "1 Gi", "1GiB", "Gi", "1e", "1e999", "1ki", "8Ei", "10E", "9223372036854775808", "0x1", "1/2", "1_0", ".", "1Gi\n",
		strings.Repeat("1", 1000),
	} {
		_, err := parseQuantity(s)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, s)
	}
}
