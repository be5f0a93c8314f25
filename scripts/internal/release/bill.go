package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
)

const noAssertion = "NOASSERTION"

// writeBill writes the software bill of materials of a program, in SPDX: the modules that the go command has recorded in
// it.
func (b build) writeBill(p program) (err error) {
	bill, err := billOf(p)
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(b.dist(), bill.DocumentName+".spdx.json"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return json.Write(bill, file, json.Indent("  "), json.EscapeHTML(false))
}

func billOf(p program) (*spdx.Document, error) {
	content, err := os.ReadFile(p.file)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	name := fmt.Sprintf("cowshed-%s-linux-%s", packageVersion(p.version()), p.arch)
	bill := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName: name, DocumentNamespace: "https://github.com/cowshed/cowshed/spdx/" + name,
		CreationInfo: &spdx.CreationInfo{
			Creators: []spdx.Creator{{CreatorType: "Tool", Creator: "cowshed-release"}},
			Created:  p.date.Format(time.RFC3339),
		},
	}
	root := modulePackage(&p.info.Main)
	root.PackageLicenseDeclared, root.PrimaryPackagePurpose = "Apache-2.0", "APPLICATION"
	root.PackageChecksums = []spdx.Checksum{{Algorithm: common.SHA256, Value: hex.EncodeToString(sum[:])}}
	bill.Packages = append(bill.Packages, root)
	bill.Relationships = append(bill.Relationships, relationship("DOCUMENT", common.TypeRelationshipDescribe, root))

	library := &debug.Module{Path: "stdlib", Version: strings.TrimPrefix(p.info.GoVersion, "go")}
	for _, module := range append([]*debug.Module{library}, p.info.Deps...) {
		if module.Replace != nil {
			return nil, fmt.Errorf("module %s is replaced by %s, which a bill cannot name", module.Path, module.Replace.Path)
		}
		dependency := modulePackage(module)
		bill.Packages = append(bill.Packages, dependency)
		bill.Relationships = append(bill.Relationships, relationship(root.PackageSPDXIdentifier, common.TypeRelationshipDependsOn, dependency))
	}
	return bill, nil
}

// modulePackage describes a module.
func modulePackage(module *debug.Module) *spdx.Package {
	p := &spdx.Package{
		PackageName: module.Path, PackageVersion: module.Version, PackageSPDXIdentifier: moduleID(module),
		PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion,
		PackageCopyrightText: noAssertion, PrimaryPackagePurpose: "LIBRARY",
		PackageExternalReferences: []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL,
			Locator: "pkg:golang/" + module.Path + "@" + strings.ReplaceAll(cmp.Or(module.Version, "unknown"), "+", "%2B"),
		}},
	}
	if module.Sum != "" {
		p.PackageComment = "go.sum: " + module.Sum
	}
	return p
}

// moduleID is an identifier of SPDX, which has letters, digits, dots and dashes.
func moduleID(module *debug.Module) spdx.ElementID {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.':
			return r
		}
		return '-'
	}, module.Path)
	return spdx.ElementID("Package-" + name)
}

func relationship(from spdx.ElementID, kind string, to *spdx.Package) *spdx.Relationship {
	return &spdx.Relationship{
		RefA: spdx.DocElementID{ElementRefID: from}, Relationship: kind,
		RefB: spdx.DocElementID{ElementRefID: to.PackageSPDXIdentifier},
	}
}
