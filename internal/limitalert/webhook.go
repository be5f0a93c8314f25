package limitalert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

const webhookTimeout = 10 * time.Second

// CheckWebhook checks the address of a webhook. Returns errdefs.ErrInvalidArgument, without the address, which may have a
// secret in it, if it is not http://… or https://….
func CheckWebhook(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fault.New(errdefs.ErrInvalidArgument, "must be http://HOST/PATH or https://HOST/PATH")
	}
	return nil
}

// webhookOf posts alerts to an address.
func webhookOf(address string) func(context.Context, Alert, []byte) error {
	client := &http.Client{
		Timeout:       webhookTimeout,
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}, // alerts are rare
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, _ Alert, body []byte) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
		if err != nil {
			return withoutAddress(err)
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		if err != nil {
			return withoutAddress(err)
		}
		defer response.Body.Close()
		if response.StatusCode/100 != 2 {
			return fmt.Errorf("the webhook says %d %s", response.StatusCode, http.StatusText(response.StatusCode))
		}
		return nil
	}
}

// withoutAddress is an error without the address of the webhook, which may have a secret in it.
func withoutAddress(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}
