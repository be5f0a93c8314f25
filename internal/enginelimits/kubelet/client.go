// Package kubelet reads resources.limits.ephemeral-storage of pods' containers from the kubelet of this node. containerd, its CRI
// and its NRI are not told of it.
package kubelet

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

const (
	answerTimeout = 10 * time.Second
	maxAnswer     = 32 << 20
	maxFile       = 1 << 20 // of certificates and the credential
)

// Client reads from the kubelet. It reads its files for each request, since they are renewed.
type Client struct {
	// Address is HOST:PORT. The kubelet's certificate must be for HOST, or for this node's name if HOST is a loopback address.
	Address string
	// CA is a file with the certificates that the kubelet's is signed by.
	CA string
	// Credential is a file with a token, or with a certificate and its key in PEM.
	Credential string

	patience time.Duration // until an answer has come as a whole; 0: answerTimeout
}

// CheckAddress returns an error if an address is not HOST:PORT.
func CheckAddress(address string) error {
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
		return fault.New(errdefs.ErrInvalidArgument, "%q must be HOST:PORT", address)
	}
	return nil
}

// pods asks for the pods of this node.
func (c *Client) pods(ctx context.Context) (pods, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.patience, answerTimeout))
	defer cancel()
	config, token, err := c.credentials()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.Address+"/pods", http.NoBody)
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	// RoundTrip follows no redirects: the token is for the kubelet alone.
	response, err := (&http.Transport{TLSClientConfig: config, DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fault.New(errdefs.ErrUnknown, "the kubelet at %s says %s", c.Address, response.Status)
	}
	body := &io.LimitedReader{R: response.Body, N: maxAnswer}
	list, err := readPods(body)
	switch {
	case err == nil:
		return list, nil
	case ctx.Err() != nil:
		err = ctx.Err() // to the decoder the answer ends
	case body.N == 0:
		err = fault.New(errdefs.ErrResourceExhausted, "it is larger than %d bytes", maxAnswer)
	}
	return nil, fmt.Errorf("pods of the kubelet at %s: %w", c.Address, err)
}

// credentials are the identities of both sides.
func (c *Client) credentials() (config *tls.Config, token string, err error) {
	config = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if config.ServerName, err = c.serverName(); err != nil {
		return nil, "", err
	}
	ca, err := readFile(c.CA)
	if err != nil {
		return nil, "", err
	}
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, "", fault.New(errdefs.ErrInvalidArgument, "%s has no certificate in PEM", c.CA)
	}
	credential, err := readFile(c.Credential)
	if err != nil {
		return nil, "", err
	}
	if !bytes.Contains(credential, []byte("-----BEGIN ")) {
		if token = string(bytes.TrimSpace(credential)); token == "" {
			err = fault.New(errdefs.ErrInvalidArgument, "%s is empty", c.Credential)
		}
		return config, token, err
	}
	pair, err := tls.X509KeyPair(credential, credential)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", c.Credential, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, "", nil
}

func (c *Client) serverName() (string, error) {
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return host, nil
	}
	host, err = os.Hostname() // a kubelet's name, if it is not told another one
	return strings.ToLower(host), err
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}
