"""Build settings, in the place of bazel_skylib's."""

FlagValue = provider(doc = "The value of a build setting.", fields = ["value"])

def _flag_impl(ctx):
    return FlagValue(value = ctx.build_setting_value)

bool_flag = rule(
    implementation = _flag_impl,
    build_setting = config.bool(flag = True),
)

string_flag = rule(
    implementation = _flag_impl,
    build_setting = config.string(flag = True),
)
