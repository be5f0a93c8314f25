package main

import (
	"errors"
	"io/fs"
	"time"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

// engines reports engines of the configuration from which the daemon does not learn limits, and containers without the limit
// that they ask for. Without the daemon, the report of the former one stands.
func (h hostCheck) engines(daemonAnswers bool) {
	const check = "limits of engines"
	if !h.config.NRI && h.config.DockerAPI == "" && h.config.DockerNRI == "" {
		return
	}
	report, err := enginelimits.ReadReport(h.config.State)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		h.add(fail, check, "restart cowshed serve, which has perhaps been started before the configuration was changed",
			"the daemon has not tried to connect to an engine")
		return
	case err != nil:
		h.add(warn, check, "", "%v", err)
		return
	}
	for _, e := range report.Engines {
		if !daemonAnswers {
			h.add(fail, check, "start the daemon, which then limits the containers that were created meanwhile",
				"%s is not connected, since the daemon does not answer", e.Name)
			continue
		}
		if e.Connected {
			h.add(ok, check, "", "%s is connected since %s", e.Name, e.Since.Format(time.DateTime))
			continue
		}
		h.add(fail, check, "new containers do not get the limits that it knows: see journalctl -u cowshed",
			"%s is not connected since %s: %s", e.Name, e.Since.Format(time.DateTime), e.Error)
	}
	for _, c := range report.Refused {
		h.add(fail, check, "give it a limit: cowshed limit containerd:"+c.Namespace+"/"+c.ID+" SIZE",
			"container %s of %s is without the limit that it asks for: %s", c.Name, c.Engine, c.Error)
	}
	if report.More > 0 {
		h.add(fail, check, "see: journalctl -u cowshed", "so are %d more containers", report.More)
	}
}
