"""layer_test: asserts which targets a layer of the source tree may reach."""

def layer_test(name, targets, forbidden, forbidden_direct = None):
    """Fails if what `targets` depend on, however far away, matches a forbidden pattern.

    Args:
      name: of the test.
      targets: full labels.
      forbidden: extended regular expression for labels that may not be reached.
      forbidden_direct: the same for labels that none of our own targets reached may name as a dependency.
    """
    everything = "set(%s)" % " ".join(targets)
    queries = [("reached", "kind('rule', deps(%s))" % everything, forbidden)]
    if forbidden_direct:
        # Abseil's own targets use its threads and clocks inside.
        ours = "filter('^//', deps(%s))" % everything
        queries.append(("named", "kind('rule', deps(%s, 1))" % ours, forbidden_direct))

    args = []
    for suffix, expression, pattern in queries:
        native.genquery(
            name = "%s_%s" % (name, suffix),
            testonly = True,
            expression = expression,
            opts = ["--noimplicit_deps"],
            scope = targets,
        )
        args += ["$(rootpath :%s_%s)" % (name, suffix), "'%s'" % pattern.replace("$", "$$")]
    native.sh_test(
        name = name,
        size = "small",
        srcs = ["layer_test.sh"],
        args = args,
        data = [":%s_%s" % (name, suffix) for suffix, _, _ in queries],
    )
