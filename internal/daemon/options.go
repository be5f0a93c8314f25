package daemon

import "log/slog"

// Options are settings that are not in the configuration.
type Options struct {
	Version string       // of this program
	Logger  *slog.Logger // nil: slog.Default
	Ready   func()       // called once, when requests are answered; nil: no one is told
}
