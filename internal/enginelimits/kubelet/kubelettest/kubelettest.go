// Package kubelettest serves a kubelet's endpoint to tests.
package kubelettest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Token is the token in Kubelet.Credential.
const Token = "the-token"

// Kubelet is a server with a certificate of its own for this host.
type Kubelet struct {
	*httptest.Server
	Address    string
	CA         string // file
	Credential string // file
}

// Start serves answers to requests that have the token. The others are unauthorized.
func Start(t testing.TB, answer http.HandlerFunc) *Kubelet {
	t.Helper()
	host, err := os.Hostname()
	require.NoError(t, err)
	certificate, text := Certificate(t, strings.ToLower(host))
	k := &Kubelet{Server: httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+Token || r.URL.Path != "/pods" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		answer(w, r)
	}))}
	k.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
	k.StartTLS()
	t.Cleanup(k.Close)
	dir := t.TempDir()
	k.Address = k.Listener.Addr().String()
	k.CA, k.Credential = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(k.CA, text, 0o600))
	require.NoError(t, os.WriteFile(k.Credential, []byte(Token+"\n"), 0o600))
	return k
}

// Certificate makes a certificate that is its own authority, and its text in PEM, with the key.
func Certificate(t testing.TB, host string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
	pair, err := tls.X509KeyPair(text, text)
	require.NoError(t, err)
	return pair, text
}
