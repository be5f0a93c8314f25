package btrfs

import (
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
)

// examineDevices reports the errors that the kernel has counted for the filesystem's devices.
func examineDevices(on detect.Filesystem) (findings []cowcommon.Finding) {
	f := cowcommon.Finding{Verdict: cowcommon.Warn, Check: "devices"}
	counted, err := detect.BtrfsDeviceErrors(on.Path)
	if err != nil {
		f.Detail = "cannot tell whether there were errors: " + err.Error()
		findings = append(findings, f)
	}
	for _, f.Detail = range counted {
		f.Advice = "see dmesg and: btrfs device stats " + on.Mountpoint
		findings = append(findings, f)
	}
	return findings
}

// features are the functions of the kernel that the driver uses if they are there.
func features(on detect.Filesystem) []detect.Feature {
	return []detect.Feature{
		{Name: "simple quotas", Without: "limits use classic quotas, which are slower with many layers", Check: detect.SimpleQuota},
		{
			Name: "waiting for removed subvolumes", Without: "space and qgroups of removed layers come back later",
			Check: func() error { return detect.SubvolSyncWait(on.Path) },
		},
	}
}
